"""Multi-head attention of all tokens to a coarser grid of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from torch import Tensor, nn

from ._export import is_exporting
from .matrix_attention import matrix_attention


class SpatialReductionAttention(nn.Module):
    """Attention whose keys and values come from a strided convolution over the token grid.

    Pyramid Vision Transformer, https://arxiv.org/abs/2102.12122, section 3.3. Extra tokens before those of the grid
    (a class or SSL token) become keys and values without reduction.

    Args:
        dim: channels.
        num_heads: attention heads; must divide ``dim``.
        grid_size: tokens per axis.
        reduction: tokens per key along each axis, clamped to the grid; 1 on every axis for plain attention.
        qkv_bias: biases of queries, keys and values.
        reference_compat: drop tokens at the end of an axis that the reduction does not divide from keys and values, as
            the released MiT does; by default none is dropped.

    Attributes:
        reduction: the clamped reduction.
        fused_attn: use scaled_dot_product_attention, or for operation counters and export plain matrix products. Taken
            from ``timm.layers.set_fused_attn`` at construction.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: Sequence[int],
        reduction: Sequence[int],
        qkv_bias: bool = True,
        reference_compat: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the {dim} channels of the stage")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.grid_size = tuple(grid_size)
        self.reduction = tuple(min(r, g) for r, g in zip(reduction, grid_size, strict=True))
        self.reference_compat = reference_compat
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.sr: Any = None
        self.norm: Any = None
        if prod(reduction) > 1:
            convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(self.grid_size)]
            self.sr = convolution(dim, dim, kernel_size=self.reduction, stride=self.reduction)
            self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, tokens: Tensor, grid_size: Sequence[int] | None = None) -> Tensor:
        """(batch, extra + prod(grid_size), dim) to the same; another ``grid_size`` than the constructor's is given."""
        context = tokens if self.sr is None else self._reduce(tokens, tuple(grid_size or self.grid_size))
        q = self.q(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self._mix(q, k, v).transpose(1, 2).flatten(2))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of (batch, heads, length, head_dim)."""
        # an exporter decomposes the fused kernel, whose memory layout it then gets wrong
        if self.fused_attn and not is_exporting():
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return matrix_attention(q, k, v, self.scale)

    def _reduce(self, tokens: Tensor, grid_size: tuple[int, ...]) -> Tensor:
        """Convolve as one matrix product over blocks, several times as fast as convolution kernels on CPU."""
        batch, length, dim = tokens.shape
        ndim = len(grid_size)
        extra = length - prod(grid_size)
        grid = tokens[:, extra:].unflatten(1, grid_size)
        if self.reference_compat:
            for axis, (g, r) in enumerate(zip(grid_size, self.reduction, strict=True)):
                grid = grid.narrow(1 + axis, 0, g // r * r)
        elif any(g % r for g, r in zip(grid_size, self.reduction, strict=True)):
            # A zero token adds nothing to the convolution, so an incomplete block sums over the tokens that it has, and
            # the norm below removes its smaller scale. Every block has a token, so none is the bias alone.
            ends = [n for g, r in zip(grid_size, self.reduction, strict=True) for n in (-g % r, 0)]
            grid = F.pad(grid, (0, 0, *reversed(ends)))
        split = [n for g, r in zip(grid.shape[1:-1], self.reduction, strict=True) for n in (g // r, r)]
        order = (0, *range(1, 2 * ndim, 2), *range(2, 2 * ndim + 1, 2), 2 * ndim + 1)
        blocks = grid.reshape(batch, *split, dim).permute(order).reshape(batch, -1, prod(self.reduction) * dim)
        # (out, in, *reduction) to (out, *reduction x in): a token's channels stay side by side
        reduced = self._multiply(blocks, self.sr.weight.movedim(1, -1).flatten(1), self.sr.bias)
        return self.norm(torch.cat([tokens[:, :extra], reduced], dim=1) if extra else reduced)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply by a kernel that is laid out as a matrix: ``F.linear``."""
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}, reduction={self.reduction}, num_heads={self.num_heads}"
