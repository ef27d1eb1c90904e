"""Class probabilities of prepared images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..cpu import optimize
from ..pretraining.data import PreparedImages
from .checkpoint import ClassifierCheckpoint, StatesImages, identity
from .classifier import mean_probabilities
from .labels import LabelledImages, unknown_note

# crops per batch
CROPS = 8


class Predictor:
    """A trained classifier in evaluation mode.

    Args:
        checkpoint: its checkpoint.
        device: device to compute on.

    Examples:
        >>> predictor = Predictor(ClassifierCheckpoint.load("classifier.pth"))
        >>> predictor.probabilities(PreparedImages(Path("prepared")), "case_0").sum()
        1.0
    """

    def __init__(self, checkpoint: ClassifierCheckpoint, device: torch.device | str = "cpu") -> None:
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.network = checkpoint.build_network().to(self.device).eval()
        if self.device.type == "cpu":
            optimize(self.network)

    @torch.inference_mode()
    def probabilities(self, images: PreparedImages, name: str) -> NDArray:
        """Return class probabilities, (classes,), the mean over the evaluation crops of an image."""
        crops = (crop.to(self.device) for crop in self.checkpoint.views.evaluation_crops(images, name))
        return mean_probabilities(self.network, crops, self.checkpoint.multi_label, CROPS).cpu().numpy()


def images_to_score(checkpoint: ClassifierCheckpoint, labelled: LabelledImages) -> tuple[list[str], NDArray, list[str]]:
    """Select the images to evaluate a classifier on, see ``unseen``.

    Args:
        checkpoint: checkpoint of the classifier.
        labelled: the table.

    Returns:
        image names, their targets, (images, classes), and notes on what was left out.

    Raises:
        ValueError: if a label is not among the classifier's classes; as ``unseen``.
    """
    targets = labelled.targets(checkpoint.classes)
    chosen, notes = unseen(checkpoint, labelled)
    return [name for name, c in zip(labelled.names, chosen, strict=True) if c], targets[chosen], notes


def unseen(checkpoint: StatesImages, labelled: LabelledImages) -> tuple[NDArray, list[str]]:
    """Select the table's test split, or all images without a split, but for those that the checkpoint has seen.

    Images that it was trained on, or its best epoch was chosen by, are left out; it knows them by their names. If it
    has seen all, those of the choice are taken.

    Args:
        checkpoint: of a classifier or detector.
        labelled: the table.

    Returns:
        whether each image is selected, and notes on what was left out, images that are not in the folder among them.

    Raises:
        ValueError: if the test split is empty, or the checkpoint was trained on all images.
    """
    noun = checkpoint.noun
    chosen = np.ones(len(labelled.names), bool) if labelled.is_test is None else labelled.is_test
    if not chosen.any():
        raise ValueError("column split has test for no prepared image; remove the column to evaluate on all images")
    notes = [note] if (note := unknown_note(labelled.unknown)) else []
    if not checkpoint.trained_on:
        notes.append(f"the {noun} does not state its training images: leave them out of the table yourself")
    trained, validated = (
        np.array([identity(name) in seen for name in labelled.names])
        for seen in map(frozenset, (checkpoint.trained_on, checkpoint.validated_on))
    )
    new = chosen & ~trained & ~validated
    if new.any():
        if left_out := int(chosen.sum() - new.sum()):
            notes.append(
                f"{left_out} images that the {noun} was trained on or chosen by are left out; it knows them by name, "
                "so rename other images of these names"
            )
    elif (new := chosen & validated).any():
        notes.append(
            f"NO IMAGE IS NEW to the {noun}: scores of the images that its best epoch was chosen by are too good"
        )
    else:
        raise ValueError(
            f"the {noun} was trained on images of all these {int(chosen.sum())} names, so scores would mean nothing; "
            "if they are other images of the same names, rename them and prepare them again"
        )
    return new, notes
