"""What a pretraining method trains: a registered network without its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from ...architectures import SegmentationNetwork, create_network


def create_encoder(name: str, input_channels: int, patch_size: Sequence[int], **overrides: Any) -> SegmentationNetwork:
    """A network whose ``encode`` works and that trains what its deepest feature map depends on.

    The decoder is gone, and what only serves the finer maps (norms of the skip connections) rests: DDP wants a gradient
    for every parameter that is trained.

    Raises:
        ValueError: as ``create_network``.
    """

    def build() -> SegmentationNetwork:
        network = create_network(name, input_channels, 2, patch_size, **overrides)
        network.decoder = nn.Identity()
        return network

    network = build()
    with torch.device("meta"), torch.enable_grad():
        # in evaluation, for batch norm cannot train on one image of one cell
        twin = build().eval()
        deepest = twin.encode(torch.empty(1, input_channels, *patch_size))[-1]
        gradients = torch.autograd.grad(deepest.sum(), list(twin.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return network


def rest_drop_path(network: nn.Module) -> None:
    """Switch drop path off for good: what a slow copy says is a target, which should not be noisy."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
