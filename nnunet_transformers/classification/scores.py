"""Scores of classifiers with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from .resampled import areas, at_youdens, average_precisions, calibration_errors, rates

RESAMPLES = 2000
LEVEL = 0.95
YOUDEN = "Youden's threshold"
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
    found = []
    for p, t in zip(probabilities.T, targets.T, strict=True):
        known = ~np.isnan(t)
        if len(np.unique(t[known])) == 2:
            found.append(roc_auc_score(t[known], p[known]))
    return float(np.mean(found)) if found else float("nan")


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
    threshold: float = 0.5,
) -> dict[str, Score]:
    """Compute the scores of a classifier with percentile bootstrap intervals over images.

    With one class per image the bootstrap is stratified by class, so that every resample has all classes. With several
    labels per image it is not, and a resample contributes to a label's interval if it has positive and negative images.

    Args:
        probabilities, targets: (images, classes); targets 0 or 1, NaN where unknown.
        classes: class names.
        multi_label: whether an image can have several labels at once.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
        threshold: probability above which a class is predicted, for sensitivity and specificity.

    Returns:
        scores by name: ``AUC``, ``accuracy``, ``average precision``, ``sensitivity`` and ``specificity`` at the
        threshold and at Youden's, and ``ECE``, the expected calibration error. They are of the second of two exclusive
        classes; otherwise means of one class against the rest, followed by ``... of CLASS``. Youden's threshold is
        chosen on the same images, in each resample anew. The ECE of exclusive classes is that of the predicted one.
    """
    arguments = (probabilities, targets, classes, multi_label, threshold)
    values = _scores(*arguments, np.arange(len(targets))[None])
    parts = [_scores(*arguments, drawn) for drawn in _resample(targets, multi_label, resamples, seed)]
    return {name: _score(float(values[name][0]), np.concatenate([part[name] for part in parts])) for name in values}


def _scores(
    probabilities: NDArray,
    targets: NDArray,
    classes: Sequence[str],
    multi_label: bool,
    threshold: float,
    drawn: NDArray,
) -> dict[str, NDArray]:
    """Compute all scores of resamples, (resamples,) each; ``drawn`` are numbers of images, (resamples, images)."""
    right, known = _right(probabilities, targets, multi_label)
    single = not multi_label and len(classes) == 2
    of_classes = [
        _scores_of_class(probabilities[:, i][drawn], targets[:, i][drawn], threshold)
        for i in range(len(classes))
        if i or not single
    ]
    means = {name: _mean(np.stack([of_class[name] for of_class in of_classes], 1)) for name in of_classes[0]}
    if multi_label:
        errors = [calibration_errors(probabilities[:, i][drawn], targets[:, i][drawn]) for i in range(len(classes))]
    else:
        errors = [calibration_errors(probabilities.max(1)[drawn], right[:, 0].astype(float)[drawn])]
    scores = {
        "AUC": means.pop("AUC"),
        "accuracy": _accuracy(right, known, drawn),
        **means,
        "ECE": _mean(np.stack(errors, 1)),
    }
    if single:
        return scores
    scores.pop(YOUDEN)  # a mean of thresholds is none
    for i, name in enumerate(classes):
        scores |= {f"{score} of {name}": values for score, values in of_classes[i].items()}
        if multi_label:
            scores[f"ECE of {name}"] = errors[i]
    return scores


def _scores_of_class(scores: NDArray, positive: NDArray, threshold: float) -> dict[str, NDArray]:
    """Compute the scores of a class against the rest, from (resamples, images)."""
    sensitivity, specificity = rates(scores, positive, threshold)
    best_sensitivity, best_specificity, best = at_youdens(scores, positive)
    return {
        "AUC": areas(scores, positive),
        "average precision": average_precisions(scores, positive),
        f"sensitivity at {threshold:g}": sensitivity,
        f"specificity at {threshold:g}": specificity,
        "sensitivity at Youden's": best_sensitivity,
        "specificity at Youden's": best_specificity,
        YOUDEN: best,
    }


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
