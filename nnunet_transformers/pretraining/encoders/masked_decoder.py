"""Decoder of masked reconstruction (MAE, https://arxiv.org/abs/2111.06377, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..patchify import unpatchify


class MaskedDecoder(nn.Module):
    """Decode all tokens by a few transformer blocks, then predict the voxels of each cell by a linear layer.

    Args:
        grid: cells per axis.
        dim: channels of the tokens.
        depth, num_heads: number of blocks and of their attention heads.
        patch_size: voxels of the image per axis.
        channels: image channels.

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(
        self, grid: Sequence[int], dim: int, depth: int, num_heads: int, patch_size: Sequence[int], channels: int
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"decoder_heads must divide the tokens' {dim} channels, got {num_heads}")
        self.grid, self.patch_size = tuple(grid), tuple(patch_size)
        self.position = nn.Parameter(trunc_normal_(torch.zeros(1, prod(grid), dim), std=0.02))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.voxels = nn.Linear(dim, channels * prod(patch_size) // prod(grid))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Decode tokens.

        Args:
            tokens: (batch, cells, dim).

        Returns:
            decoded tokens, (batch, cells, dim), and the image, (batch, channels, *patch_size).
        """
        tokens = self.norm(self.blocks(tokens + self.position))
        return tokens, unpatchify(self.voxels(tokens), self.grid, self.patch_size)
