"""Weights from elsewhere."""

from .reference import from_reference

__all__ = ["from_reference"]
