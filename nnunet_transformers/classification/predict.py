"""Probabilities of prepared images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..cpu import optimize
from ..pretraining.data import PreparedImages
from .checkpoint import ClassifierCheckpoint
from .classifier import mean_probabilities
from .labels import LabelledImages

PARTS = 8


class Predictor:
    """A trained classifier.

    Args:
        checkpoint: of it.
        device: to compute on.
    """

    def __init__(self, checkpoint: ClassifierCheckpoint, device: torch.device | str = "cpu") -> None:
        self.checkpoint, self.device = checkpoint, torch.device(device)
        self.network = checkpoint.build_network().to(self.device).eval()
        if self.device.type == "cpu":
            optimize(self.network)

    @torch.inference_mode()
    def probabilities(self, images: PreparedImages, name: str) -> NDArray:
        """Of the classes, (classes,): the mean over all that is seen of an image."""
        parts = (part.to(self.device) for part in self.checkpoint.views.parts(images, name))
        return mean_probabilities(self.network, parts, self.checkpoint.multi_label, PARTS).cpu().numpy()


def images_to_score(checkpoint: ClassifierCheckpoint, labelled: LabelledImages) -> tuple[list[str], NDArray]:
    """The images of a table that a classifier is judged by: those to test on, where it says which.

    Args:
        checkpoint: of the classifier.
        labelled: the table.

    Returns:
        names, and their targets, (images, classes).

    Raises:
        ValueError: if a label is none of the classifier's, or no image is to test on.
    """
    targets = labelled.targets(checkpoint.classes)
    chosen = np.ones(len(targets), bool) if labelled.is_test is None else labelled.is_test
    if not chosen.any():
        raise ValueError("column split says test of no image that was prepared; leave it out to take all of them")
    return [name for name, c in zip(labelled.names, chosen, strict=True) if c], targets[chosen]
