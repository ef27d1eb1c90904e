"""The main job, start to end, on data that needs no download."""

from .run import run_demo

__all__ = ["run_demo"]
