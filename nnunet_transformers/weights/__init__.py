"""Pretrained weights: read safely, translated from releases, transferred into networks that differ."""

from .encoder import EncoderCheckpoint, encoder_adapters, encoder_weights, load_encoder, load_encoder_weights
from .file import load_checkpoint, load_state_dict, save_checkpoint
from .imagenet import ImageNetWeights, load_imagenet
from .initialise import InitialWeights, encoder_specification, initialise, load_enough
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .primus import PrimusCheckpoint, create_primus, load_primus_weights
from .releases import from_reference, identify
from .sealed import SealedCheckpoint, package_versions
from .source import find_weights, load
from .timm_encoder import TimmCheckpoint, create_timm
from .transfer import transfer

__all__ = [
    "EncoderCheckpoint",
    "ImageNetWeights",
    "InitialWeights",
    "LoadReport",
    "PretrainedWeights",
    "PrimusCheckpoint",
    "SealedCheckpoint",
    "TimmCheckpoint",
    "create_primus",
    "create_timm",
    "encoder_adapters",
    "encoder_specification",
    "encoder_weights",
    "find_weights",
    "from_reference",
    "identify",
    "initialise",
    "load",
    "load_checkpoint",
    "load_encoder",
    "load_encoder_weights",
    "load_enough",
    "load_imagenet",
    "load_primus_weights",
    "load_state_dict",
    "package_versions",
    "save_checkpoint",
    "transfer",
]
