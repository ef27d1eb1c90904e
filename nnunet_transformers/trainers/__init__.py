"""Trainers that nnU-Net finds by name (``-tr``), thin on top of its own."""

from importlib import import_module

from ..discovery import CLASSES

__all__ = [name for name, module in CLASSES.items() if module.startswith(__name__)]
globals().update({name: getattr(import_module(CLASSES[name]), name) for name in __all__})
