"""Overlap of two label maps: one confusion matrix, from which the counts of every label and region follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# voxels counted at a time, which bounds the memory
VOXELS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Counts:
    """Voxels of a label: true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def reference(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN if both are empty (Dice, Ecology 1945)."""
        voxels = self.predicted + self.reference
        return 2 * self.tp / voxels if voxels else math.nan

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN if both are empty (Jaccard, 1912)."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else math.nan

    @property
    def relative_volume_difference(self) -> float:
        """(predicted - reference) / reference; NaN without a reference (Heimann et al., IEEE TMI 2009, II-C)."""
        return (self.predicted - self.reference) / self.reference if self.reference else math.nan


def confusion_matrix(prediction: NDArray, reference: NDArray, labels: int) -> NDArray:
    """Count the voxels of each pair of labels.

    Args:
        prediction, reference: integers below ``labels``, of the same shape.
        labels: number of label values, background included.

    Returns:
        (labels, labels), int64: reference by prediction.
    """
    counts = np.zeros(labels * labels, np.int64)
    ours, theirs = prediction.reshape(-1), reference.reshape(-1)
    for first in range(0, ours.size, VOXELS_AT_ONCE):
        part = slice(first, first + VOXELS_AT_ONCE)
        pairs = theirs[part].astype(np.intp)
        pairs *= labels
        pairs += ours[part]
        counts += np.bincount(pairs, minlength=counts.size)
    return counts.reshape(labels, labels)


def counts_of(confusion: NDArray, values: Sequence[int]) -> Counts:
    """Return the counts of a label, or of a region, the union of several.

    Args:
        confusion: (labels, labels) of ``confusion_matrix``.
        values: label values; those beyond the matrix do not occur.
    """
    values = [value for value in values if value < len(confusion)]
    tp = int(confusion[np.ix_(values, values)].sum())
    fp = int(confusion[:, values].sum()) - tp
    fn = int(confusion[values].sum()) - tp
    return Counts(tp, fp, fn, int(confusion.sum()) - tp - fp - fn)
