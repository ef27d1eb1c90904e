"""Demo: the whole nnU-Net pipeline on a dataset that needs no download."""

from .pipeline import run_demo

__all__ = ["run_demo"]
