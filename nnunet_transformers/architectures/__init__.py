"""Transformer U-Nets in pure PyTorch: they know no nnU-Net.

>>> from nnunet_transformers.architectures import create_network, list_networks
"""

from . import mit as _mit  # noqa: F401  (registers its networks, as do the others)
from . import qt_unet as _qt_unet  # noqa: F401
from . import unet2022 as _unet2022  # noqa: F401
from ._network import SegmentationNetwork
from ._registry import NetworkEntry, ReleasedFamily, create_network, get_network, get_released_family, list_networks
from .mit_classifier import MiTClassifier
from .mit_pair import MiTPair
from .pair import NetworkPair

__all__ = [
    "MiTClassifier",
    "MiTPair",
    "NetworkEntry",
    "NetworkPair",
    "ReleasedFamily",
    "SegmentationNetwork",
    "create_network",
    "get_network",
    "get_released_family",
    "list_networks",
]
