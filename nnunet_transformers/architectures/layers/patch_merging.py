"""Down-sampling of a token grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class PatchMerging(nn.Module):
    """Concatenate neighbouring tokens, normalise and project (https://arxiv.org/abs/2103.14030, section 3.1).

    Args:
        grid_size: tokens per axis of the input.
        stride: neighbours to merge per axis.
        dim, out_dim: channels before and after.
    """

    def __init__(self, grid_size: Sequence[int], stride: Sequence[int], dim: int, out_dim: int) -> None:
        super().__init__()
        self.split = tuple(n for g, s in zip(grid_size, stride, strict=True) for n in (g // s, s))
        ndim = len(self.split) // 2
        grid_axes = [1 + 2 * a for a in range(ndim)]
        # Swin's neighbour order, which released weights expect: height varies fastest, then width, then depth
        offset_axes = [*(2 + 2 * a for a in range(ndim - 2)), 2 * ndim, 2 * ndim - 2]
        self.order = (0, *grid_axes, *offset_axes, 2 * ndim + 1)
        self.norm = nn.LayerNorm(prod(stride) * dim)
        self.reduction = nn.Linear(prod(stride) * dim, out_dim, bias=False)

    @property
    def is_swins(self) -> bool:
        """Whether it merges Swin's four neighbours in-plane, each with those in depth after one another."""
        return self.split[-3::2] == (2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length, dim) to (batch, length / prod(stride), out_dim)."""
        batch, _, dim = tokens.shape
        merged = tokens.view(batch, *self.split, dim).permute(self.order)
        return self.reduction(self.norm(merged.reshape(batch, -1, self.norm.normalized_shape[0])))
