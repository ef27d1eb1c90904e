"""Metrics and probes of the papers that nnU-Net's own evaluation lacks, and the HTML report of a trained fold."""

from .iou_thresholds import THRESHOLDS, IoUSummary, evaluate_predictions, iou_at_thresholds

__all__ = ["THRESHOLDS", "IoUSummary", "evaluate_predictions", "iou_at_thresholds"]
