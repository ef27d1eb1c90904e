"""Transformer U-Nets, and networks to compare with, in pure PyTorch without nnU-Net.

A network is one file: blocks, encoder, decoder, the network, the translation of public weights, the registered sizes.

>>> from nnunet_transformers.architectures import create_network, list_networks
"""

from . import mednext as _mednext  # noqa: F401
from . import primus as _primus  # noqa: F401
from . import qt_unet as _qt_unet  # noqa: F401
from . import resnet_unet as _resnet_unet  # noqa: F401
from . import resunet as _resunet  # noqa: F401
from . import setr_pup as _setr_pup  # noqa: F401
from . import setr_pup_dinov3 as _setr_pup_dinov3  # noqa: F401
from . import stock_unet as _stock_unet  # noqa: F401
from . import swin_unetr as _swin_unetr  # noqa: F401
from . import unet2022 as _unet2022  # noqa: F401
from . import unetr as _unetr  # noqa: F401
from . import vt_unet as _vt_unet  # noqa: F401
from ._arguments import PerAxis, check_strides, per_axis, per_stage, token_grids
from ._backbone import Backbone
from ._encoder import EncoderPair, Pooled, create_backbone, create_encoder, create_pair, form_overrides
from ._network import TOKEN_ARGUMENTS, SegmentationNetwork
from ._pair import TOKEN_PREFIX, NetworkPair
from ._registry import (
    NetworkEntry,
    ReleasedFamily,
    TimmFamily,
    class_path,
    create_network,
    find_stock,
    get_network,
    get_released_family,
    get_timm_family,
    is_registered,
    list_networks,
    list_released_families,
    register_network,
    register_released_family,
)
from .mit import segmentation as _mit  # noqa: F401  (registers its networks, as do the others)
from .mit.classifier import MiTClassifier
from .mit.pair import MiTPair

__all__ = [
    "TOKEN_ARGUMENTS",
    "TOKEN_PREFIX",
    "Backbone",
    "EncoderPair",
    "MiTClassifier",
    "MiTPair",
    "NetworkEntry",
    "NetworkPair",
    "PerAxis",
    "Pooled",
    "ReleasedFamily",
    "SegmentationNetwork",
    "TimmFamily",
    "check_strides",
    "class_path",
    "create_backbone",
    "create_encoder",
    "create_network",
    "create_pair",
    "find_stock",
    "form_overrides",
    "get_network",
    "get_released_family",
    "get_timm_family",
    "is_registered",
    "list_networks",
    "list_released_families",
    "per_axis",
    "per_stage",
    "register_network",
    "register_released_family",
    "token_grids",
]
