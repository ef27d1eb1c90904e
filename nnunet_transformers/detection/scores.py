"""Mean average precision, by torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .yolo import Boxes

# of MGCA's comparison: the mean over these
IOU_THRESHOLDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
# COCO's areas are in pixels, so boxes are scaled to an image of this size
PIXELS = 1000.0


def mean_average_precision(
    found: Sequence[Boxes],
    targets: Sequence[NDArray],
    classes: Sequence[str],
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    crowds: Sequence[NDArray] | None = None,
) -> dict[str, float]:
    """Compute COCO's mean average precision over IoU thresholds; an image without objects counts as well.

    Args:
        found: boxes of each image.
        targets: of each image (boxes, 5): number of the class, then the box.
        classes: names of the classes.
        iou_thresholds: a box is right if its IoU with an object is at least that.
        crowds: as ``targets``, boxes around groups of objects, which need not be found, and in which nothing is wrong.

    Returns:
        ``mAP``, the mean over thresholds and classes; ``AP at IoU 0.5``, where that is a threshold; with several
        classes ``mAP of CLASS``. Classes without an object are left out.

    Raises:
        ModuleNotFoundError: without the extra ``[detection]``.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_thresholds=list(iou_thresholds), class_metrics=len(classes) > 1)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mAP needs torchmetrics and pycocotools: pip install 'nnunet-transformers[detection]'"
        ) from error
    groups = [target[:0] for target in targets] if crowds is None else crowds
    wanted = [torch.from_numpy(np.concatenate(pair)) for pair in zip(targets, groups, strict=True)]
    is_crowd = [torch.arange(len(w)) >= len(target) for w, target in zip(wanted, targets, strict=True)]
    metric.update(
        [{"boxes": b.boxes * PIXELS, "scores": b.scores, "labels": b.labels} for b in found],
        [
            {"boxes": t[:, 1:] * PIXELS, "labels": t[:, 0].long(), "iscrowd": crowd.long()}
            for t, crowd in zip(wanted, is_crowd, strict=True)
        ],
    )
    results = metric.compute()
    scores = {"mAP": float(results["map"])}
    if 0.5 in iou_thresholds:
        scores["AP at IoU 0.5"] = float(results["map_50"])
    if len(classes) > 1:
        numbers, values = (torch.atleast_1d(results[key]).tolist() for key in ("classes", "map_per_class"))
        pairs = zip(numbers, values, strict=True)
        scores |= {f"mAP of {classes[number]}": value for number, value in pairs if value >= 0}
    return scores
