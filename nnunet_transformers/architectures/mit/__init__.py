"""MiT, the encoder-decoder of UniMiSS: for segmentation, for classification, and as a pair of a 2D and a 3D form."""

from .classifier import MiTClassifier
from .pair import MiTPair
from .segmentation import MiT
from .trunk import MiTTrunk

__all__ = ["MiT", "MiTClassifier", "MiTPair", "MiTTrunk"]
