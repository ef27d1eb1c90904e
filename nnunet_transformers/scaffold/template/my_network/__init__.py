"""MyNetwork for nnU-Net: network, planner and trainer."""

from .network import MyNetwork

__all__ = ["MyNetwork"]
