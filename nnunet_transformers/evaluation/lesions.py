"""Lesion-wise detection: connected components of the reference that a prediction finds, and those it makes up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


@dataclass(frozen=True)
class Detection:
    """Lesions of a case.

    Attributes:
        found, missed: lesions of the reference that are and are not detected.
        spurious: predicted components that detect none.
    """

    found: int
    missed: int
    spurious: int

    @property
    def sensitivity(self) -> float:
        """Found / all of the reference; NaN if it has none."""
        return _share(self.found, self.missed)

    @property
    def precision(self) -> float:
        """Found / (found + spurious); NaN if nothing is predicted."""
        return _share(self.found, self.spurious)

    @property
    def f1(self) -> float:
        """2 found / (2 found + missed + spurious); NaN if there are no lesions in either."""
        return _share(2 * self.found, self.missed + self.spurious)


def detect_lesions(prediction: NDArray, reference: NDArray, connectivity: int = 3, iou: float = 0.0) -> Detection:
    """Match the connected components of two masks.

    Args:
        prediction, reference: boolean, of the same shape.
        connectivity: voxels are connected by faces (1), edges (2) or corners (3; 26 neighbours in 3D).
        iou: 0: a lesion is found if one of its voxels is predicted, as in the lesion-wise F1 of ISLES 2022 (Hernandez
            Petzsche et al., Scientific Data 2022); a value of 0.5 or more: if the IoU with a component is larger, which
            matches one to one (Kirillov et al., "Panoptic segmentation", CVPR 2019, section 4.1).
    """
    structure = ndimage.generate_binary_structure(prediction.ndim, min(connectivity, prediction.ndim))
    ours, number_of_ours = ndimage.label(prediction, structure)
    theirs, number_of_theirs = ndimage.label(reference, structure)
    both = prediction & reference
    pairs = np.stack([theirs[both], ours[both]])
    (lesions, components), overlap = np.unique(pairs, axis=1, return_counts=True)
    if iou:
        sizes = np.bincount(theirs.reshape(-1))[lesions] + np.bincount(ours.reshape(-1))[components]
        matched = overlap / (sizes - overlap) > iou
        lesions, components = lesions[matched], components[matched]
    found = len(np.unique(lesions))
    return Detection(found, number_of_theirs - found, number_of_ours - len(np.unique(components)))


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else math.nan
