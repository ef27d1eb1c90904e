"""Transformer U-Nets in pure PyTorch: they know no nnU-Net.

>>> from nnunet_transformers.architectures import create_network, list_networks
"""

from . import mit as _mit  # noqa: F401  (registers its networks)
from . import qt_unet as _qt_unet  # noqa: F401
from ._network import SegmentationNetwork
from ._registry import NetworkEntry, ReleasedFamily, create_network, get_network, get_released_family, list_networks

__all__ = [
    "NetworkEntry",
    "ReleasedFamily",
    "SegmentationNetwork",
    "create_network",
    "get_network",
    "get_released_family",
    "list_networks",
]
