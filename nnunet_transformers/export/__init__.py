"""Export of predictions in bounded memory, with nnU-Net's results."""

from .image_export import ImageExport, export_prediction_from_logits
from .label_map import LabelMap, begin_label_map
from .resampling import SeparableResampling, separable_resampling

__all__ = [
    "ImageExport",
    "LabelMap",
    "SeparableResampling",
    "begin_label_map",
    "export_prediction_from_logits",
    "separable_resampling",
]
