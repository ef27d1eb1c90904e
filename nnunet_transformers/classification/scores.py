"""AUC, accuracy and, for two classes, average precision, sensitivity, specificity, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

RESAMPLES = 2000
LEVEL = 0.95
# elements of the largest array, which bounds the memory for many images
ELEMENTS_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Score:
    """Score with its bootstrap confidence interval.

    Attributes:
        value: score of all images; None if undefined.
        low, high: bounds of the 95 % interval.
    """

    value: float | None
    low: float | None
    high: float | None


def auc(probabilities: NDArray, targets: NDArray) -> float:
    """Compute the area under the ROC curve, the mean over one-versus-rest AUCs of the classes.

    Classes without positive or without negative images are left out.

    Args:
        probabilities, targets: (images, classes); targets 0 or 1, NaN where unknown.

    Returns:
        the mean; NaN if no class is left.

    Examples:
        >>> auc(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[1, 0], [0, 1]]))
        1.0
    """
    areas = []
    for p, t in zip(probabilities.T, targets.T, strict=True):
        known = ~np.isnan(t)
        if len(np.unique(t[known])) == 2:
            areas.append(roc_auc_score(t[known], p[known]))
    return float(np.mean(areas)) if areas else float("nan")


def accuracy(probabilities: NDArray, targets: NDArray, multi_label: bool) -> float:
    """Compute the share of images whose most likely class is correct.

    With several labels per image this is the mean accuracy over labels at threshold 0.5.

    Args:
        probabilities, targets: (images, classes); targets 0 or 1, NaN where unknown.
        multi_label: whether an image can have several labels at once.

    Returns:
        the share; NaN if no target is known.
    """
    right, known = _right(probabilities, targets, multi_label)
    return float(_accuracy(right, known, np.arange(len(targets))[None])[0])


def score_with_intervals(
    probabilities: NDArray,
    targets: NDArray,
    classes: Sequence[str],
    multi_label: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Score]:
    """Compute AUC and accuracy with percentile bootstrap intervals over images.

    With one class per image the bootstrap is stratified by class, so that every resample has all classes. With several
    labels per image it is not, and a resample contributes to a label's interval if it has positive and negative images.

    Args:
        probabilities, targets: (images, classes); targets 0 or 1, NaN where unknown.
        classes: class names.
        multi_label: whether an image can have several labels at once.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Returns:
        scores by name: ``AUC``, ``accuracy`` and, for more than two classes or several labels, ``AUC of CLASS``; for
        two classes ``average precision``, ``sensitivity`` and ``specificity``, of which the second class is positive.
    """
    right, known = _right(probabilities, targets, multi_label)
    areas, accuracies, binary = [], [], []
    for drawn in _resample(targets, multi_label, resamples, seed):
        areas.append(np.stack([_areas(p[drawn], t[drawn]) for p, t in zip(probabilities.T, targets.T, strict=True)], 1))
        accuracies.append(_accuracy(right, known, drawn))
        binary.append(_binary(probabilities[:, -1][drawn], targets[:, -1][drawn] == 1, right[:, 0][drawn]))
    area = np.concatenate(areas)
    scores = {
        "AUC": _score(auc(probabilities, targets), _mean(area)),
        "accuracy": _score(accuracy(probabilities, targets, multi_label), np.concatenate(accuracies)),
    }
    if multi_label or len(classes) > 2:
        for i, name in enumerate(classes):
            scores[f"AUC of {name}"] = _score(auc(probabilities[:, i : i + 1], targets[:, i : i + 1]), area[:, i])
    else:
        values = _binary(probabilities[None, :, -1], targets[None, :, -1] == 1, right[None, :, 0])[0]
        for i, name in enumerate(("average precision", "sensitivity", "specificity")):
            scores[name] = _score(float(values[i]), np.concatenate(binary)[:, i])
    return scores


def as_text(scores: Mapping[str, Score]) -> dict[str, str]:
    """Format each score as ``0.912 (0.854 to 0.961)``."""
    return {
        name: "not defined" if s.value is None else f"{s.value:.3f} ({s.low:.3f} to {s.high:.3f})"
        for name, s in scores.items()
    }


def _resample(targets: NDArray, multi_label: bool, resamples: int, seed: int) -> Iterator[NDArray]:
    """Yield numbers of drawn images, (resamples, images), for some resamples at a time."""
    rng = np.random.default_rng(seed)
    all_images = np.arange(len(targets))
    groups = [all_images] if multi_label else [np.flatnonzero(t == 1) for t in targets.T]
    groups = [group for group in groups if len(group)]
    step = max(1, ELEMENTS_AT_ONCE // targets.size)
    for first in range(0, resamples, step):
        number = min(step, resamples - first)
        yield np.concatenate([rng.choice(group, (number, len(group))) for group in groups], axis=1)


def _areas(scores: NDArray, positive: NDArray) -> NDArray:
    """Compute the AUC of each row from the ranks of its positives (Mann-Whitney); NaN for a row with one class only."""
    unknown = np.isnan(positive)
    # unknown targets take the lowest ranks, which are subtracted
    ranks = rankdata(np.where(unknown, -np.inf, scores), axis=1) - unknown.sum(1, keepdims=True)
    is_positive = positive == 1
    number, others = is_positive.sum(1), (positive == 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((ranks * is_positive).sum(1) - number * (number + 1) / 2) / (number * others)


def _binary(scores: NDArray, positive: NDArray, right: NDArray) -> NDArray:
    """Compute average precision, sensitivity and specificity of rows (resamples, images): (resamples, 3)."""
    # number of images and of positives with a score at least as high, for each image
    above = rankdata(-scores, method="max", axis=1).astype(int)
    order = np.argsort(-scores, axis=1, kind="stable")
    counts = np.cumsum(np.take_along_axis(positive, order, axis=1), axis=1)
    precision = np.take_along_axis(counts, above - 1, axis=1) / above
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [(values * chosen).sum(1) / chosen.sum(1) for values, chosen in
                  ((precision, positive), (right, positive), (right, ~positive))]  # fmt: skip
    return np.stack(shares, axis=1)


def _right(probabilities: NDArray, targets: NDArray, multi_label: bool) -> tuple[NDArray, NDArray]:
    """Return which predictions are correct and which targets are known, both (images, labels)."""
    if multi_label:
        return (probabilities > 0.5) == (targets == 1), ~np.isnan(targets)
    right = probabilities.argmax(1) == targets.argmax(1)
    return right[:, None], np.ones((len(right), 1), bool)


def _accuracy(right: NDArray, known: NDArray, drawn: NDArray) -> NDArray:
    """Compute the accuracy of each row of ``drawn``, the mean over labels."""
    numbers = known[drawn].sum(1)
    with np.errstate(invalid="ignore"):
        return _mean((right & known)[drawn].sum(1) / numbers)


def _mean(values: NDArray) -> NDArray:
    """Compute the mean over the last axis without NaN."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(-1) / defined.sum(-1)


def _score(value: float, resampled: NDArray) -> Score:
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(resampled):
        return Score(None, None, None)
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Score(float(value), float(low), float(high))
