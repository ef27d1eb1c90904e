"""MiT, the encoder-decoder of UniMiSS: for segmentation, classification, and as a 2D and 3D pair for pretraining."""

from .classifier import MiTClassifier
from .pair import MiTPair
from .segmentation import MiT
from .trunk import MiTTrunk

__all__ = ["MiT", "MiTClassifier", "MiTPair", "MiTTrunk"]
