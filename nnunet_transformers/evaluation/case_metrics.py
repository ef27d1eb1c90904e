"""All metrics of a case: one pass over the voxels for the overlap of all labels, then each label in its own box."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .conventions import DIAGONAL, UNDEFINED, Conventions
from .lesions import detect_lesions
from .overlap import Counts, confusion_matrix, counts_of
from .segmentations import Segmentation
from .surfaces import SurfaceDistances, surface_distances
from .targets import Target, Targets

# what nnU-Net's summary.json has, in its spelling
OVERLAP = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")
DISTANCES = ("HD95", "ASSD", "MASD")
VOLUMES = ("VD", "RVD")
LESION_COUNTS = ("lesion TP", "lesion FP", "lesion FN")
LESIONS = ("lesion F1", "lesion sensitivity", "lesion precision")

Box = tuple[slice, ...]


def metric_names(conventions: Conventions) -> list[str]:
    """Return the names of the metrics, in the order of a case's."""
    names = [*OVERLAP, *DISTANCES, *conventions.tolerances_of(""), *VOLUMES]
    return [*names, *LESIONS, *LESION_COUNTS] if conventions.lesions else names


def case_metrics(
    prediction: Segmentation, reference: Segmentation, targets: Targets, conventions: Conventions
) -> dict[str, dict[str, float]]:
    """Compute the metrics of every label and region of a case.

    Voxels that the reference marks with the ignore label are background in both, and not counted.

    Args:
        prediction, reference: label maps of the same shape and spacing.
        targets: labels and regions.
        conventions: how the metrics are defined.

    Returns:
        by the target's key, metrics by name: ``Dice``, ``IoU`` and nnU-Net's counts; ``HD95``, ``ASSD`` and ``MASD`` in
        mm; ``NSD ... mm``; ``VD``, the volume of the prediction less that of the reference, in ml (undefined for 2D
        images), and ``RVD``, relative to the reference's; of lesions ``lesion F1`` and others if asked for. NaN where
        undefined.

    Raises:
        ValueError: if shapes or spacings differ, or a value is not a label of the dataset.
    """
    _check_geometry(prediction, reference)
    ours, theirs, ignored = prediction.voxels, reference.voxels, 0
    if targets.ignore is not None:
        ignore = theirs == targets.ignore
        if ignored := int(np.count_nonzero(ignore)):
            ours, theirs = np.where(ignore, 0, ours), np.where(ignore, 0, theirs)
    largest = max(int(ours.max(initial=0)), int(theirs.max(initial=0)))
    confusion = confusion_matrix(ours, theirs, largest + 1)
    _check_values(confusion, targets)
    confusion[0, 0] -= ignored
    boxes = [ndimage.find_objects(voxels, max_label=largest) if largest else [] for voxels in (ours, theirs)]
    diagonal = math.hypot(*(n * s for n, s in zip(theirs.shape, reference.spacing, strict=True)))

    metrics = {}
    for target in targets.targets:
        counts = counts_of(confusion, target.values)
        box = _union([b for found in boxes for v in target.values if v <= largest and (b := found[v - 1])])
        masks = None if box is None else (_mask(ours[box], target), _mask(theirs[box], target))
        metrics[target.key] = {
            **_overlap(counts, conventions),
            **_surfaces(masks, counts, target, reference.spacing, diagonal, conventions),
            **_volumes(counts, reference.voxel_volume, conventions),
            **_lesions(masks, target, conventions),
        }
    return metrics


def _overlap(counts: Counts, conventions: Conventions) -> dict[str, float]:
    is_perfect = not counts.predicted + counts.reference and conventions.empty_in_both == "perfect"
    dice, iou = (1.0, 1.0) if is_perfect else (counts.dice, counts.iou)
    values = (dice, iou, counts.tp, counts.fp, counts.fn, counts.tn, counts.predicted, counts.reference)
    return dict(zip(OVERLAP, values, strict=True))


def _surfaces(
    masks: tuple[NDArray, NDArray] | None,
    counts: Counts,
    target: Target,
    spacing: Sequence[float],
    diagonal: float,
    conventions: Conventions,
) -> dict[str, float]:
    tolerances = conventions.tolerances_of(target.name)
    if masks is None or not counts.predicted or not counts.reference:
        distance, surface_dice = _of_empty(masks is None, diagonal, conventions)
        return {**dict.fromkeys(DISTANCES, distance), **dict.fromkeys(tolerances, surface_dice)}
    d: SurfaceDistances = surface_distances(*masks, spacing, conventions.surface_connectivity)
    values = (d.hausdorff(95, conventions.hd95 == "pooled"), d.average, d.mean_average)
    named = dict(zip(DISTANCES, values, strict=True))
    return {**named, **{name: d.surface_dice(tolerance) for name, tolerance in tolerances.items()}}


def _of_empty(in_both: bool, diagonal: float, conventions: Conventions) -> tuple[float, float]:
    """Return distance and surface Dice of a label that one of the two, or both, lack."""
    if in_both:
        return (0.0, 1.0) if conventions.empty_in_both == "perfect" else (math.nan, math.nan)
    if conventions.empty_in_one == DIAGONAL:
        return diagonal, 0.0
    return math.nan if conventions.empty_in_one == UNDEFINED else float(conventions.empty_in_one), 0.0


def _volumes(counts: Counts, voxel_volume: float | None, conventions: Conventions) -> dict[str, float]:
    relative = counts.relative_volume_difference
    if not counts.predicted + counts.reference and conventions.empty_in_both == "perfect":
        relative = 0.0
    voxels = counts.predicted - counts.reference
    return {"VD": math.nan if voxel_volume is None else voxels * voxel_volume / 1000, "RVD": relative}


def _lesions(masks: tuple[NDArray, NDArray] | None, target: Target, conventions: Conventions) -> dict[str, float]:
    if not conventions.lesions:
        return {}
    if not conventions.has_lesions(target.name):
        return dict.fromkeys((*LESIONS, *LESION_COUNTS), math.nan)
    if masks is None:
        scores = 1.0 if conventions.empty_in_both == "perfect" else math.nan
        return {**dict.fromkeys(LESIONS, scores), **dict.fromkeys(LESION_COUNTS, 0)}
    found = detect_lesions(*masks, conventions.lesion_connectivity, conventions.lesion_iou)
    values = (found.f1, found.sensitivity, found.precision, found.found, found.spurious, found.missed)
    return dict(zip((*LESIONS, *LESION_COUNTS), values, strict=True))


def _check_geometry(prediction: Segmentation, reference: Segmentation) -> None:
    if prediction.voxels.shape != reference.voxels.shape:
        sizes = ("x".join(map(str, part.voxels.shape)) for part in (prediction, reference))
        raise ValueError("the prediction has {} voxels, its reference {}".format(*sizes))
    if not np.allclose(prediction.spacing, reference.spacing, rtol=1e-3):
        raise ValueError(f"the prediction's spacing is {prediction.spacing} mm, its reference's {reference.spacing} mm")


def _check_values(confusion: NDArray, targets: Targets) -> None:
    if (known := targets.known) is None:
        return
    for axis, what in ((0, "prediction"), (1, "reference")):
        unknown = sorted({*np.flatnonzero(confusion.sum(axis)).tolist()} - {*known})
        if unknown:
            raise ValueError(
                f"the {what} holds the value {unknown[0]}, which is not a label of {targets.source}: {known}"
            )


def _union(boxes: Sequence[Box]) -> Box | None:
    """Return the smallest box around some; None if there are none."""
    if not boxes:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _mask(voxels: NDArray, target: Target) -> NDArray:
    mask = voxels == target.values[0]
    for value in target.values[1:]:
        mask |= voxels == value
    return mask
