"""Encoders of masked images.

Windows and convolutions need the whole grid, so mask tokens replace the embedded patches of masked cells (SimMIM,
https://arxiv.org/abs/2111.09886). A ViT processes visible tokens only (MAE, https://arxiv.org/abs/2111.06377).
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
from ...architectures.primus import TOKEN
from ...weights.primus import create_primus, is_fixed_size


def random_mask(grid: tuple[int, ...], ratio: float, rng: np.random.Generator) -> NDArray:
    """Draw a mask.

    Args:
        grid: cells per axis.
        ratio: share of masked cells, rounded to whole cells.
        rng: generator to draw from.

    Returns:
        boolean array of shape ``grid``, true for masked cells.
    """
    mask = np.zeros(np.prod(grid), dtype=bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(grid)


def check_mask_ratio(grid: tuple[int, ...], ratio: float, name: str, remedy: str) -> None:
    """Check that some cells are masked and some are visible.

    Args:
        grid: cells per axis.
        ratio: share of masked cells.
        name: of the argument.
        remedy: what gives more cells, other than the ratio.

    Raises:
        ValueError: if all cells would be masked, or none.
    """
    masked, cells = random_mask(grid, ratio, np.random.default_rng(0)).sum(), int(np.prod(grid))
    if not 0 < masked < cells:
        raise ValueError(f"{name} {ratio} masks {masked} of {cells} cells; change it, or {remedy}")


class MaskedEncoder(nn.Module):
    """Encode images by a network whose masked cells are replaced by a learned token.

    Args:
        network: result of ``create_encoder``.
        input_channels: image channels.
        grid: cells per axis, of one of the feature maps; by default of the deepest one.

    Attributes:
        grid: cells per axis; these cells are masked or visible.
        dim: channels of the deepest feature map.
        map_shapes: (channels, *grid) of each feature map, finest first.
    """

    def __init__(self, network: SegmentationNetwork, input_channels: int, grid: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        self.grid = tuple(network.grid_sizes[-1] if grid is None else grid)
        self.dim = network.feature_channels[-1]
        self.map_shapes = map_shapes(network)
        stem: Any = network.stem
        with torch.no_grad():
            # evaluation mode keeps the zeros out of the running statistics of batch norms
            embedded = stem.eval()(torch.zeros(1, input_channels, *network.patch_size))
        stem.train()
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(embedded.shape[self._channel_axis]), std=0.02))

    @property
    def _channel_axis(self) -> int:
        return -1 if self.network.stem_channels_last else 1

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode images.

        Args:
            image: (batch, channels, *patch_size).
            mask: (batch, *grid), true for masked cells; by default no cell is masked.

        Returns:
            tokens of the deepest feature map, (batch, cells, dim).
        """
        return self.maps(image, mask)[-1].flatten(2).transpose(1, 2)

    def maps(self, image: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Encode images as ``forward`` does, to all feature maps, (batch, channels, *grid), finest first."""
        if mask is None:
            return self.network.encode(image)
        stem: Any = self.network.stem
        handle = stem.register_forward_hook(lambda _, inputs, output: self._replace(output, mask))
        try:
            # mask the voxels too: the stem's kernels and norms reach beyond a cell
            return self.network.encode(hide(image, mask))
        finally:
            handle.remove()

    def _replace(self, embedded: Tensor, mask: Tensor) -> Tensor:
        if embedded.dim() == 3:  # tokens without a grid
            grid = self.network.grid_sizes[0]
            return torch.where(enlarge(mask, grid).flatten(1)[..., None], self.mask_token, embedded)
        if self.network.stem_channels_last:
            return torch.where(enlarge(mask, embedded.shape[1:-1])[..., None], self.mask_token, embedded)
        token = self.mask_token.view(-1, *[1] * len(self.grid))
        return torch.where(enlarge(mask, embedded.shape[2:])[:, None], token, embedded)


class VisibleEncoder(nn.Module):
    """Encode images by nnU-Net's Primus, which processes visible tokens only; a learned token fills masked cells.

    Args:
        network: result of ``create_primus``; its decoder is removed.
        patch_size: voxels per axis that the network was built for.

    Attributes:
        grid: tokens per axis.
        dim: channels of a token.
        map_shapes: (channels, *grid) of the only feature map, the tokens.
    """

    def __init__(self, network: Primus, patch_size: Sequence[int]) -> None:
        super().__init__()
        network.up_projection = nn.Identity()
        self.network = network
        self.grid = token_grids(patch_size, [TOKEN])[0]
        self.dim = network.embed_dim
        self.map_shapes = [(self.dim, *self.grid)]
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(self.dim), std=0.02))

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode images, see ``MaskedEncoder.forward``; each image of a batch must have as many masked cells."""
        eva = self.network.eva
        if mask is not None:
            # the stems of Primus V2 and V3 reach beyond a cell
            image = hide(image, mask)
        tokens = self.network.down_projection(image).flatten(2).transpose(1, 2) + eva.pos_embed
        rope = eva.rope.get_embed()
        if mask is None:
            return self._blocks(tokens, rope)
        kept = visible_cells(mask)
        rows = kept[..., None].expand(-1, -1, self.dim)
        # (batch, heads, tokens, dim), broadcast over the heads
        seen = self._blocks(tokens.gather(1, rows), rope[kept][:, None])
        everywhere = self.mask_token.to(seen.dtype).expand(*tokens.shape)
        return everywhere.scatter(1, rows, seen)

    def maps(self, image: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Encode images as ``forward`` does, to one feature map, (batch, dim, *grid)."""
        return [self(image, mask).transpose(1, 2).unflatten(2, self.grid)]

    def _blocks(self, tokens: Tensor, rope: Tensor) -> Tensor:
        for block in self.network.eva.blocks:
            tokens = block(tokens, rope=rope)
        return self.network.eva.norm(tokens)


def create_masked_encoder(
    name: str, input_channels: int, patch_size: Sequence[int], overrides: Mapping[str, Any] | None = None
) -> MaskedEncoder | VisibleEncoder:
    """Build a network's encoder of masked images.

    Args:
        name: registered network, or a size of nnU-Net's Primus.
        input_channels: image channels.
        patch_size: voxels per axis.
        overrides: arguments of a registered network.

    Raises:
        ValueError: if there is no such network, or its arguments are invalid.
    """
    if is_fixed_size(name, overrides):
        return VisibleEncoder(create_primus(name, input_channels, patch_size), patch_size)
    return MaskedEncoder(create_encoder(name, input_channels, patch_size, **(overrides or {})), input_channels)


def choose_grid(network: SegmentationNetwork, mask_size: int) -> tuple[int, ...]:
    """Choose the cells to mask: those of the coarsest map with cells of at most ``mask_size`` voxels on each axis.

    Args:
        network: network with ``feature_strides``.
        mask_size: largest edge of a cell in voxels; if no map has such small cells, the finest map's are taken.

    Returns:
        cells per axis.
    """
    grids = zip(network.grid_sizes, network.feature_strides, strict=True)
    fitting = [grid for grid, stride in grids if max(stride) <= mask_size]
    return tuple((fitting or network.grid_sizes[:1])[-1])


def map_shapes(network: SegmentationNetwork) -> list[tuple[int, ...]]:
    """Return (channels, *grid) of each map that a network's ``encode`` returns, finest first."""
    return [(dim, *grid) for dim, grid in zip(network.feature_channels, network.grid_sizes, strict=True)]


def visible_cells(mask: Tensor) -> Tensor:
    """List the visible cells of each image, for which a GPU's host has to wait: once, rather than at every layer.

    Args:
        mask: (batch, *grid), true for masked cells, as many in each image.

    Returns:
        their numbers in the flattened grid, (batch, visible).
    """
    return (~mask.flatten(1)).nonzero()[:, 1].view(len(mask), -1)


def hide(image: Tensor, mask: Tensor) -> Tensor:
    """Set the voxels of masked cells to 0, the mean of a z-scored image.

    Args:
        image: (batch, channels, *size).
        mask: (batch, *grid), true for masked cells.
    """
    return image.masked_fill(enlarge(mask, image.shape[2:])[:, None], 0.0)


def enlarge(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize a mask, (batch, *cells), to (batch, *grid)."""
    return F.interpolate(mask[:, None].float(), size=tuple(grid), mode="nearest")[:, 0] > 0.5
