"""Transposed convolutions whose kernel size is their stride: each element becomes a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .patch_expand import blocks_to_grid


class _PatchTranspose:
    """The convolution as one matrix product, since no two blocks overlap; convolution kernels reach a few percent of
    its rate.

    Attributes:
        channels_last: the channels of input and output are the last axis, not the second.
    """

    channels_last = True
    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.channels_last else x.movedim(1, -1)
        weight = self.weight.movedim((0, 1), (-1, -2)).flatten(0, -2)
        bias = self.bias.repeat(len(weight) // len(self.bias))
        blocks = self._multiply(x.flatten(1, -2), weight, bias)
        image = blocks_to_grid(blocks, x.shape[1:-1], self.stride)
        return image if self.channels_last else image.movedim(-1, 1)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiply by a kernel that is laid out as a matrix: ``F.linear``."""
        return F.linear(x, weight, bias)


class PatchTranspose2d(_PatchTranspose, nn.ConvTranspose2d):  # type: ignore[misc]  # forward takes no output_size
    """``nn.ConvTranspose2d`` with a kernel of the size of its stride."""


class PatchTranspose3d(_PatchTranspose, nn.ConvTranspose3d):  # type: ignore[misc]
    """``nn.ConvTranspose3d`` with a kernel of the size of its stride."""


def patch_transpose(dim: int, out_dim: int, stride: Sequence[int], channels_last: bool = True) -> nn.Module:
    """Build a transposed convolution that turns each element into a block of ``stride`` elements.

    Args:
        dim, out_dim: channels before and after.
        stride: block edge per axis, two or three of them.
        channels_last: the layer maps (batch, *grid, dim) to (batch, *(grid x stride), out_dim); False for channels in
            the second axis.
    """
    layer_class: Any = {2: PatchTranspose2d, 3: PatchTranspose3d}[len(stride)]
    layer = layer_class(dim, out_dim, tuple(stride), tuple(stride))
    layer.channels_last = channels_last
    return layer
