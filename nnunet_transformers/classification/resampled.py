"""Scores of classifiers for many resamples of the images at once, one a row; unknown targets count in none.

All take ``scores``, (rows, images), and ``positive``, 1 or 0 of the same shape, NaN where unknown, and return NaN for
rows in which a score is undefined. Equal scores are one threshold, as in scikit-learn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

# of equal width, as in Guo et al., "On calibration of modern neural networks", ICML 2017
BINS = 15


def areas(scores: NDArray, positive: NDArray) -> NDArray:
    """Compute the area under the ROC curve from the ranks of the positives (Mann-Whitney)."""
    unknown = np.isnan(positive)
    # unknown targets take the lowest ranks, which are subtracted
    ranks = rankdata(np.where(unknown, -np.inf, scores), axis=1) - unknown.sum(1, keepdims=True)
    is_positive = positive == 1
    number, others = is_positive.sum(1), (positive == 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * is_positive).sum(1) - number * (number + 1) / 2) / (number * others)


def average_precisions(scores: NDArray, positive: NDArray) -> NDArray:
    """Compute the mean of the precisions at the thresholds of the positives, without interpolation."""
    _, is_positive, found, false_alarms = _by_threshold(scores, positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(is_positive, found / (found + false_alarms), 0)
        return precision.sum(1) / is_positive.sum(1)


def rates(scores: NDArray, positive: NDArray, threshold: float) -> tuple[NDArray, NDArray]:
    """Compute sensitivity and specificity where scores above a threshold are positive."""
    is_above, is_positive, is_negative = scores > threshold, positive == 1, positive == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = (is_above & is_positive).sum(1) / is_positive.sum(1)
        return sensitivity, (~is_above & is_negative).sum(1) / is_negative.sum(1)


def at_youdens(scores: NDArray, positive: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Compute sensitivity, specificity and threshold where their sum is largest (Youden, Cancer 1950).

    Scores from the threshold on are positive; of several the highest is taken.
    """
    ordered, _, found, false_alarms = _by_threshold(scores, positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = found / (positive == 1).sum(1, keepdims=True)
        specificity = 1 - false_alarms / (positive == 0).sum(1, keepdims=True)
    total = sensitivity + specificity
    best = np.nan_to_num(total, nan=-1).argmax(1)[:, None]
    taken = (np.take_along_axis(values, best, 1)[:, 0] for values in (sensitivity, specificity, ordered))
    undefined = np.isnan(total).any(1)
    first, second, threshold = (np.where(undefined, np.nan, values) for values in taken)
    return first, second, threshold


def calibration_errors(confidence: NDArray, right: NDArray, bins: int = BINS) -> NDArray:
    """Compute the expected calibration error: the mean over images of how far their bin's share of ones is from its
    mean confidence.

    Args:
        confidence: (rows, images), in [0, 1].
        right: whether what it is the confidence of holds.
        bins: of equal width, upper bounds included.
    """
    rows = len(confidence)
    known = ~np.isnan(right)
    # the bins of a row follow those of the row before
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1) + bins * np.arange(rows)[:, None]
    gap = np.where(known, np.nan_to_num(right) - confidence, 0)
    sums = np.bincount(index.ravel(), gap.ravel(), rows * bins).reshape(rows, bins)
    with np.errstate(invalid="ignore"):
        return np.abs(sums).sum(1) / known.sum(1)


def _by_threshold(scores: NDArray, positive: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Order images by falling score.

    Returns:
        scores, whether they are of positives, and at the threshold of each the numbers of true and false positives.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, order, 1)
    targets = np.take_along_axis(positive, order, 1)
    images = scores.shape[1]
    # the last image of those with the same score
    is_last = np.ones(ordered.shape, bool)
    is_last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    last = np.where(is_last, np.arange(images), images)
    last = np.minimum.accumulate(last[:, ::-1], axis=1)[:, ::-1]
    found, alarms = (np.take_along_axis((targets == value).cumsum(1), last, 1) for value in (1, 0))
    return ordered, targets == 1, found, alarms
