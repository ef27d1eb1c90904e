"""Image to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping patches, embedded by one strided convolution and normalised.

    Args:
        input_channels: image channels.
        dim: token channels.
        stride: patch edge per axis, two or three of them.
    """

    def __init__(self, input_channels: int, dim: int, stride: Sequence[int]) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(stride)]
        self.proj = convolution(input_channels, dim, kernel_size=tuple(stride), stride=tuple(stride))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, input_channels, *size) to (batch, length, dim)."""
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))
