"""Transformer U-Nets for nnU-Net v2, found by name."""

__version__ = "0.2.0"
