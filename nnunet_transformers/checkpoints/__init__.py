"""Weights from elsewhere: files read safely, releases translated."""

from .files import load_checkpoint, load_state_dict, save_checkpoint
from .reference import from_reference, identify

__all__ = ["from_reference", "identify", "load_checkpoint", "load_state_dict", "save_checkpoint"]
