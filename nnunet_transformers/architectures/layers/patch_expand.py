"""Up-sampling of a token grid, and tokens back to an image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


def tokens_to_image(tokens: Tensor, grid_size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Lay out tokens that each hold a block of ``stride`` voxels.

    Args:
        tokens: (batch, length, prod(stride) x channels), the channels of a voxel side by side.

    Returns:
        (batch, channels, *(grid_size x stride)).
    """
    ndim = len(grid_size)
    blocks = tokens.view(tokens.shape[0], *grid_size, *stride, -1)
    interleaved = [axis for a in range(ndim) for axis in (1 + a, 1 + ndim + a)]
    image = blocks.permute(0, 2 * ndim + 1, *interleaved)
    return image.reshape(tokens.shape[0], -1, *(g * s for g, s in zip(grid_size, stride, strict=True)))


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
        ndim = len(self.grid_size)
        self.order = (0, *(axis for a in range(ndim) for axis in (1 + a, 1 + ndim + a)), 2 * ndim + 1)
        self.expand = nn.Linear(dim, prod(stride) * out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, dim) to (batch, length x prod(stride), out_dim)."""
        batch = tokens.shape[0]
        blocks = self.expand(tokens).view(batch, *self.grid_size, *self.stride, self.out_dim)
        return self.norm(blocks.permute(self.order).reshape(batch, -1, self.out_dim))
