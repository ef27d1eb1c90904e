"""Weights from elsewhere: files read safely, releases translated, ImageNet's and encoders' fitted in."""

from ..architectures.layers import fit_position_embeddings
from .encoder import EncoderCheckpoint, encoder_weights, load_encoder
from .file import load_checkpoint, load_state_dict, save_checkpoint
from .imagenet import load_imagenet
from .initialise import encoder_specification, initialise
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .primus import PrimusCheckpoint, create_primus, load_primus_weights, primus_weights
from .releases import from_reference, identify
from .timm_encoder import TimmCheckpoint, create_timm
from .transfer import load_encoder_weights

__all__ = [
    "EncoderCheckpoint",
    "LoadReport",
    "PretrainedWeights",
    "PrimusCheckpoint",
    "TimmCheckpoint",
    "create_primus",
    "create_timm",
    "encoder_specification",
    "encoder_weights",
    "fit_position_embeddings",
    "from_reference",
    "identify",
    "initialise",
    "load_checkpoint",
    "load_encoder",
    "load_encoder_weights",
    "load_imagenet",
    "load_primus_weights",
    "load_state_dict",
    "primus_weights",
    "save_checkpoint",
]
