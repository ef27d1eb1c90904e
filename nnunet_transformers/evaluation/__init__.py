"""Metrics of the papers that nnU-Net's own evaluation does not have."""

from .iou_thresholds import THRESHOLDS, IoUSummary, evaluate_predictions, iou_at_thresholds

__all__ = ["THRESHOLDS", "IoUSummary", "evaluate_predictions", "iou_at_thresholds"]
