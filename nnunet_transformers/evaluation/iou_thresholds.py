"""Mean IoU over probability thresholds, the metric of UNet-2022's Table 3 (section 4.1, EM dataset)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from .._paths import inside
from .segmentations import (
    check_values,
    common_file_ending,
    dataset_json_of,
    find_reader,
    load_dataset_json,
    read_probabilities,
    read_segmentation,
)
from .statistics import or_null

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def iou_at_thresholds(
    probabilities: NDArray,
    reference: NDArray,
    thresholds: Sequence[float] = THRESHOLDS,
    ignore: NDArray | None = None,
) -> list[float]:
    """Compute the IoU of ``probabilities >= threshold`` and a mask at each threshold.

    Args:
        probabilities: probabilities of one label, any shape.
        reference: boolean, the same shape.
        thresholds: thresholds of the probabilities.
        ignore: boolean, the same shape: voxels to leave out.

    Returns:
        IoUs between 0 and 1; NaN if prediction and reference are both empty, as in nnU-Net.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> iou_at_thresholds(np.array([0.9, 0.6, 0.2]), np.array([True, False, False]), (0.5, 0.7))
        [0.5, 1.0]
    """
    if probabilities.shape != reference.shape:
        raise ValueError(f"probabilities of shape {probabilities.shape}, but a reference of {reference.shape}")
    ious = []
    for threshold in thresholds:
        tp, fp, fn, _ = compute_tp_fp_fn_tn(reference, probabilities >= threshold, ignore)
        union = int(tp + fp + fn)
        ious.append(int(tp) / union if union else math.nan)
    return ious


@dataclass(frozen=True)
class IoUSummary:
    """IoUs of a folder of predictions.

    Attributes:
        label: evaluated label.
        per_case: IoUs of each case at ``THRESHOLDS``; NaN if prediction and reference are both empty.
        without_prediction: cases with a label file but no prediction.
    """

    label: int
    per_case: dict[str, list[float]]
    without_prediction: tuple[str, ...] = ()

    @property
    def per_threshold(self) -> list[float]:
        """Mean over the images at each threshold without NaN, as in nnU-Net; NaN if all are."""
        return [_mean(ious) for ious in zip(*self.per_case.values(), strict=True)]

    @property
    def mean_iou(self) -> float:
        """Mean over thresholds of ``per_threshold``."""
        return _mean(self.per_threshold)

    @property
    def empty(self) -> int:
        """Number of pairs of image and threshold left out because prediction and reference are both empty."""
        return sum(math.isnan(iou) for ious in self.per_case.values() for iou in ious)

    def as_json(self) -> dict[str, Any]:
        """Return plain types; undefined values are null."""

        return {
            "label": self.label,
            "mean_iou": or_null(self.mean_iou),
            "thresholds": list(THRESHOLDS),
            "mean_iou_per_threshold": [or_null(v) for v in self.per_threshold],
            "iou_per_case": {case: [or_null(v) for v in ious] for case, ious in self.per_case.items()},
            "left_out_as_empty": self.empty,
            "cases_without_prediction": list(self.without_prediction),
        }


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def evaluate_predictions(predictions: Path, labels: Path, label: int = 1) -> IoUSummary:
    """Compute the IoU at each threshold for every predicted case.

    Args:
        predictions: folder written by ``nnUNetv2_predict --save_probabilities``: for each case an .npz file with
            ``probabilities``, (classes, *image), in the geometry of the original image, and ``dataset.json``; or the
            ``validation`` of a fold trained with ``--npz``.
        labels: folder of segmentations with the names of the predictions.
        label: label to evaluate.

    Raises:
        FileNotFoundError: if probabilities or a label file are missing.
        ValueError: if a file cannot be read, shapes differ, or the label is not among the dataset's.
    """
    for folder in (predictions, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    described = dataset_json_of(predictions)
    dataset = load_dataset_json(described) if described else None
    file_ending = dataset["file_ending"] if dataset else common_file_ending(labels)
    cases = _predicted_cases(predictions, file_ending)
    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order")) if dataset else None
    channel = _channel(label, manager)

    reader = None
    per_case = {}
    for case in cases:
        path = inside(labels, f"{case}{file_ending}")
        if not path.is_file():
            raise FileNotFoundError(f"label file {path} of the prediction {predictions / case}.npz is missing")
        reader = reader or find_reader(dataset, file_ending, path)
        segmentation = _read_segmentation(reader, path, manager)
        probabilities = _load_probabilities(predictions / f"{case}.npz", channel, label)
        ignore = segmentation == manager.ignore_label if manager and manager.has_ignore_label else None
        try:
            per_case[case] = iou_at_thresholds(probabilities, segmentation == label, ignore=ignore)
        except ValueError as error:
            raise ValueError(f"{case}: {error}; does {labels} hold the labels of these images?") from error
    others = {p.name.removesuffix(file_ending) for p in labels.glob(f"*{file_ending}")} - set(cases)
    return IoUSummary(label, per_case, tuple(sorted(others)))


def _predicted_cases(predictions: Path, file_ending: str) -> list[str]:
    cases = sorted(p.stem for p in predictions.glob("*.npz"))
    missing = sorted({p.name.removesuffix(file_ending) for p in predictions.glob(f"*{file_ending}")} - set(cases))
    if missing or not cases:
        what = f"{predictions / missing[0]}.npz is missing" if missing else f"{predictions} holds no .npz"
        raise FileNotFoundError(f"{what}; predict again with nnUNetv2_predict ... --save_probabilities")
    return cases


def _channel(label: int, manager: LabelManager | None) -> int:
    """Return the channel of the probabilities that belongs to a label."""
    if manager is None:
        return label
    outputs = manager.foreground_regions if manager.has_regions else manager.all_labels
    members = [np.atleast_1d(output).tolist() for output in outputs]
    if [label] not in members:
        raise ValueError(f"--label {label} is not among the classes of dataset.json: {manager.label_dict}")
    return members.index([label])


def _read_segmentation(reader: BaseReaderWriter, path: Path, manager: LabelManager | None) -> NDArray:
    segmentation, _ = read_segmentation(reader, path)
    if manager is not None:
        known = [*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else [])]
        check_values(segmentation, known, path)
    return segmentation


def _load_probabilities(path: Path, channel: int, label: int) -> NDArray:
    probabilities = read_probabilities(path)
    if not 0 <= channel < len(probabilities):
        raise ValueError(f"--label {label} is not among the {len(probabilities)} classes of {path}")
    return probabilities[channel]
