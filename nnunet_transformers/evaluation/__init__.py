"""The papers' metrics and probes, which nnU-Net's evaluation lacks, comparisons, and the HTML report of a fold."""

from .comparison import Comparison, Difference, compare
from .conventions import BRATS_DISTANCE, Conventions
from .folders import evaluate_folder
from .iou_thresholds import THRESHOLDS, IoUSummary, evaluate_predictions, iou_at_thresholds
from .results import Evaluation
from .surfaces import SurfaceDistances, surface_distances
from .tables import ENDINGS as TABLE_ENDINGS
from .tables import Table, shown
from .targets import BRATS, Targets, parse_region

__all__ = [
    "BRATS",
    "BRATS_DISTANCE",
    "TABLE_ENDINGS",
    "THRESHOLDS",
    "Comparison",
    "Conventions",
    "Difference",
    "Evaluation",
    "IoUSummary",
    "SurfaceDistances",
    "Table",
    "Targets",
    "compare",
    "evaluate_folder",
    "evaluate_predictions",
    "iou_at_thresholds",
    "parse_region",
    "shown",
    "surface_distances",
]
