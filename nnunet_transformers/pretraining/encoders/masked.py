"""Encoders of masked images.

Networks with windows and convolutions need a whole grid: mask tokens replace the embedded patches of masked cells
(SimMIM, https://arxiv.org/abs/2111.09886). A ViT processes the visible tokens only (MAE,
https://arxiv.org/abs/2111.06377).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.primus import Primus
from numpy.typing import NDArray
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ...architectures import SegmentationNetwork, create_encoder
from ...architectures._arguments import token_grids
from ...weights.primus import SIZES, TOKEN, create_primus


def random_mask(grid: tuple[int, ...], ratio: float, rng: np.random.Generator) -> NDArray:
    """Draw a mask, boolean of shape ``grid``; ``ratio`` of its cells, rounded to whole cells, are true."""
    mask = np.zeros(np.prod(grid), dtype=bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(grid)


class MaskedEncoder(nn.Module):
    """A network's encoder with a learned token for masked cells; cells are those of its deepest feature map.

    Args:
        network: result of ``create_encoder``.
        input_channels: image channels.
    """

    def __init__(self, network: SegmentationNetwork, input_channels: int) -> None:
        super().__init__()
        self.network = network
        self.grid = tuple(network.grid_sizes[-1])
        self.dim = network.feature_channels[-1]
        stem: Any = network.stem
        with torch.no_grad():
            # in evaluation mode, so that the zeros do not enter the running statistics of a batch norm
            embedded = stem.eval()(torch.zeros(1, input_channels, *network.patch_size))
        stem.train()
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(embedded.shape[self._channel_axis]), std=0.02))

    @property
    def _channel_axis(self) -> int:
        return -1 if self.network.stem_channels_last else 1

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode images to tokens (batch, cells, dim) of the deepest map.

        Args:
            image: (batch, channels, *patch_size).
            mask: (batch, *grid), true for masked cells; no cell is masked by default.
        """
        if mask is None:
            return self._tokens(image)
        # the voxels are masked too: kernels of a stem reach beyond a cell, and norms further
        image = image.masked_fill(_enlarge(mask, image.shape[2:])[:, None], 0.0)
        stem: Any = self.network.stem
        handle = stem.register_forward_hook(lambda _, inputs, output: self._replace(output, mask))
        try:
            return self._tokens(image)
        finally:
            handle.remove()

    def _tokens(self, image: Tensor) -> Tensor:
        return self.network.encode(image)[-1].flatten(2).transpose(1, 2)

    def _replace(self, embedded: Tensor, mask: Tensor) -> Tensor:
        if embedded.dim() == 3:  # tokens without a grid
            grid = self.network.grid_sizes[0]
            return torch.where(_enlarge(mask, grid).flatten(1)[..., None], self.mask_token, embedded)
        if self.network.stem_channels_last:
            return torch.where(_enlarge(mask, embedded.shape[1:-1])[..., None], self.mask_token, embedded)
        token = self.mask_token.view(-1, *[1] * len(self.grid))
        return torch.where(_enlarge(mask, embedded.shape[2:])[:, None], token, embedded)


class VisibleEncoder(nn.Module):
    """The encoder of nnU-Net's Primus, which processes visible tokens only; its output has a learned token elsewhere.

    Args:
        network: result of ``create_primus``; its decoder is removed.
        patch_size: voxels per axis that it was built for.
    """

    def __init__(self, network: Primus, patch_size: Sequence[int]) -> None:
        super().__init__()
        network.up_projection = nn.Identity()
        self.network = network
        self.grid = token_grids(patch_size, [TOKEN])[0]
        self.dim = network.embed_dim
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(self.dim), std=0.02))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode as ``MaskedEncoder`` does; the same number of cells must be masked in each image of a batch."""
        eva = self.network.eva
        if mask is not None:
            # the stems of Primus's later versions reach beyond a cell
            image = image.masked_fill(_enlarge(mask, image.shape[2:])[:, None], 0.0)
        tokens = self.network.down_projection(image).flatten(2).transpose(1, 2) + eva.pos_embed
        rope = eva.rope.get_embed()
        if mask is None:
            return self._blocks(tokens, rope)
        visible = ~mask.flatten(1)
        kept = visible.nonzero()[:, 1].view(len(mask), -1)
        # (batch, heads, tokens, dim), broadcast over the heads
        seen = self._blocks(tokens[visible].view(*kept.shape, -1), rope[kept][:, None])
        everywhere = self.mask_token.to(seen.dtype).expand(*visible.shape, -1)
        return everywhere.masked_scatter(visible[..., None], seen)

    def _blocks(self, tokens: Tensor, rope: Tensor) -> Tensor:
        for block in self.network.eva.blocks:
            tokens = block(tokens, rope=rope)
        return self.network.eva.norm(tokens)


def create_masked_encoder(
    name: str, input_channels: int, patch_size: Sequence[int], overrides: Mapping[str, Any] | None = None
) -> MaskedEncoder | VisibleEncoder:
    """Build the encoder of masked images of a network.

    Args:
        name: registered network, or one of nnU-Net's Primus.
        input_channels: image channels.
        patch_size: voxels per axis.
        overrides: arguments of a registered network.

    Raises:
        ValueError: if there is no such network, or it cannot have these arguments.
    """
    if name not in SIZES:
        return MaskedEncoder(create_encoder(name, input_channels, patch_size, **(overrides or {})), input_channels)
    if overrides:
        raise ValueError(f"network_overrides are for this package's networks; {name} has none")
    return VisibleEncoder(create_primus(name, input_channels, patch_size), patch_size)


def _enlarge(mask: Tensor, grid: Sequence[int]) -> Tensor:
    return F.interpolate(mask[:, None].float(), size=tuple(grid), mode="nearest")[:, 0] > 0.5
