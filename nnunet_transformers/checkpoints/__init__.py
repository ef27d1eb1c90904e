"""Weights from elsewhere: files read safely, releases translated, ImageNet's fitted in."""

from ..architectures.layers import fit_position_embeddings
from .files import load_checkpoint, load_state_dict, save_checkpoint
from .imagenet import load_imagenet
from .initialise import initialise
from .reference import from_reference, identify
from .report import LoadReport

__all__ = [
    "LoadReport",
    "fit_position_embeddings",
    "from_reference",
    "identify",
    "initialise",
    "load_checkpoint",
    "load_imagenet",
    "load_state_dict",
    "save_checkpoint",
]
