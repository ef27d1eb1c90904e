"""Up-sampling of a token grid, and tokens back to an image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


def blocks_to_grid(tokens: Tensor, grid_size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Lay out tokens that each hold a block of ``stride`` elements.

    Args:
        tokens: (batch, length, prod(stride) x channels), the channels of an element side by side.
        grid_size: tokens per axis.
        stride: block edge per axis.

    Returns:
        (batch, *(grid_size x stride), channels).
    """
    ndim = len(grid_size)
    blocks = tokens.view(tokens.shape[0], *grid_size, *stride, -1)
    interleaved = [axis for a in range(ndim) for axis in (1 + a, 1 + ndim + a)]
    size = [g * s for g, s in zip(grid_size, stride, strict=True)]
    return blocks.permute(0, *interleaved, 2 * ndim + 1).reshape(tokens.shape[0], *size, -1)


def tokens_to_image(tokens: Tensor, grid_size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Lay out tokens as ``blocks_to_grid`` does, channels first.

    Returns:
        (batch, channels, *(grid_size x stride)).
    """
    voxels = blocks_to_grid(tokens, grid_size, stride)
    # transposing each sample as a matrix is several times as fast as permuting the batch
    samples = [sample.flatten(0, -2).T.contiguous() for sample in voxels]
    image = samples[0][None] if len(samples) == 1 else torch.stack(samples)
    return image.unflatten(2, voxels.shape[1:-1])


class PatchExpand(nn.Module):
    """Split each token into a block of tokens: linear layer, pixel shuffle, norm (QT-UNet thesis, section 3.3.5).

    Args:
        grid_size: tokens per axis of the input.
        stride: block edge per axis.
        dim, out_dim: channels before and after.
    """

    def __init__(self, grid_size: Sequence[int], stride: Sequence[int], dim: int, out_dim: int) -> None:
        super().__init__()
        self.grid_size, self.stride, self.out_dim = tuple(grid_size), tuple(stride), out_dim
        self.expand = nn.Linear(dim, prod(stride) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, dim) to (batch, length x prod(stride), out_dim)."""
        grid = blocks_to_grid(self.expand(tokens), self.grid_size, self.stride)
        return self.norm(grid.flatten(1, -2))
