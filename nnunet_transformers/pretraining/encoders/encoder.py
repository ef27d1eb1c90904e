"""What a pretraining method trains: a registered network without its decoder."""

from __future__ import annotations

from timm.layers import DropPath
from torch import nn


def rest_drop_path(network: nn.Module) -> None:
    """Switch drop path off for good: what a slow copy says is a target, which should not be noisy."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
