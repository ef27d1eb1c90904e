"""The main job, start to end, on data that needs no download."""

from .pipeline import run_demo

__all__ = ["run_demo"]
