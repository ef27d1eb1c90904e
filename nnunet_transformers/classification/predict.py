"""Class probabilities of prepared images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..cpu import optimize
from ..pretraining.data import PreparedImages
from .checkpoint import ClassifierCheckpoint, identity
from .classifier import mean_probabilities
from .labels import LabelledImages

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
    """Select the images to evaluate a classifier on: the table's test split, or all images without a split.

    Images that it was trained on, or its best epoch was chosen by, are left out. If it has seen all, those of the
    choice are taken.

    Args:
        checkpoint: checkpoint of the classifier.
        labelled: the table.

    Returns:
        image names, their targets, (images, classes), and notes on what was left out.

    Raises:
        ValueError: if a label is not among the classifier's classes, the test split is empty, or the classifier was
            trained on all images.
    """
    targets = labelled.targets(checkpoint.classes)
    chosen = np.ones(len(targets), bool) if labelled.is_test is None else labelled.is_test
    if not chosen.any():
        raise ValueError("column split has test for no prepared image; remove the column to evaluate on all images")
    notes = []
    if not checkpoint.trained_on:
        notes.append("the classifier does not state its training images: leave them out of the table yourself")
    trained, validated = (
        np.array([identity(name) in seen for name in labelled.names])
        for seen in map(frozenset, (checkpoint.trained_on, checkpoint.validated_on))
    )
    unseen = chosen & ~trained & ~validated
    if unseen.any():
        if left_out := int(chosen.sum() - unseen.sum()):
            notes.append(f"{left_out} images that the classifier was trained on or chosen by are left out")
    elif (unseen := chosen & validated).any():
        notes.append(
            "NO IMAGE IS NEW to the classifier: scores of the images that its best epoch was chosen by are too good"
        )
    else:
        raise ValueError(f"the classifier was trained on all {int(chosen.sum())} images: their scores mean nothing")
    return [name for name, c in zip(labelled.names, unseen, strict=True) if c], targets[unseen], notes
