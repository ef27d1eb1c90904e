"""The papers' metrics and probes, which nnU-Net's evaluation lacks, and the HTML report of a trained fold."""

from .iou_thresholds import THRESHOLDS, IoUSummary, evaluate_predictions, iou_at_thresholds

__all__ = ["THRESHOLDS", "IoUSummary", "evaluate_predictions", "iou_at_thresholds"]
