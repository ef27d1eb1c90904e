"""An encoder of which parts are hidden: mask tokens take the place of embedded patches (SimMIM,
https://arxiv.org/abs/2111.09886), as windows and convolutions need a whole grid."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..architectures import SegmentationNetwork


def random_mask(grid: tuple[int, ...], ratio: float, rng: np.random.Generator) -> NDArray:
    """Cells to hide, boolean of shape ``grid``, exactly their share rounded."""
    mask = np.zeros(np.prod(grid), dtype=bool)
    mask[rng.permutation(mask.size)[: round(ratio * mask.size)]] = True
    return mask.reshape(grid)


class MaskedEncoder(nn.Module):
    """A network's encoder with a learned token for hidden cells, which are those of its deepest feature map.

    Args:
        network: of ``create_encoder``.
        input_channels: image channels.
    """

    def __init__(self, network: SegmentationNetwork, input_channels: int) -> None:
        super().__init__()
        self.network = network
        self.grid = tuple(network.grid_sizes[-1])
        self.dim = network.feature_channels[-1]
        with torch.no_grad():
            embedded = network.stem(torch.zeros(1, input_channels, *network.patch_size))
        self.mask_token = nn.Parameter(trunc_normal_(torch.zeros(embedded.shape[self._channel_axis]), std=0.02))

    @property
    def _channel_axis(self) -> int:
        return -1 if self.network.stem_channels_last else 1

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """(batch, channels, *patch_size) to tokens (batch, cells, dim) of the deepest map.

        Args:
            image: not changed.
            mask: (batch, *grid), true where a cell is hidden; nothing is hidden without it.
        """
        if mask is None:
            return self._tokens(image)
        # kernels of a stem reach beyond a cell and norms beyond that, so that the voxels have to go too
        image = image.masked_fill(_enlarge(mask, image.shape[2:])[:, None], 0.0)
        handle = self.network.stem.register_forward_hook(lambda _, inputs, output: self._hide(output, mask))
        try:
            return self._tokens(image)
        finally:
            handle.remove()

    def _tokens(self, image: Tensor) -> Tensor:
        return self.network.encode(image)[-1].flatten(2).transpose(1, 2)

    def _hide(self, embedded: Tensor, mask: Tensor) -> Tensor:
        if embedded.dim() == 3:  # tokens without a grid
            grid = self.network.grid_sizes[0]
            return torch.where(_enlarge(mask, grid).flatten(1)[..., None], self.mask_token, embedded)
        if self.network.stem_channels_last:
            return torch.where(_enlarge(mask, embedded.shape[1:-1])[..., None], self.mask_token, embedded)
        token = self.mask_token.view(-1, *[1] * len(self.grid))
        return torch.where(_enlarge(mask, embedded.shape[2:])[:, None], token, embedded)


def _enlarge(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    return F.interpolate(mask[:, None].float(), size=tuple(grid), mode="nearest")[:, 0] > 0.5
