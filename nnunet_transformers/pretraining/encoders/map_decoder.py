"""Decoders of masked reconstruction from feature maps: nnU-Net's for several maps, MAE's for the one of a ViT.

As nnssl does for OpenMind's comparison (https://arxiv.org/abs/2412.17041): a U-Net decoder with one convolution per
level behind a CNN, two transformer layers behind Primus. Both are light, so that the work is the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from types import SimpleNamespace

from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

from ..patchify import unpatchify
from .masked_decoder import MaskedDecoder


class PyramidDecoder(nn.Module):
    """Decode feature maps by nnU-Net's decoder, then predict the voxels of each cell of the finest map.

    Args:
        shapes: (channels, *grid) of each map, finest first; two or more.
        patch_size: voxels of the image per axis.
        channels: image channels.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], patch_size: Sequence[int], channels: int) -> None:
        super().__init__()
        grids = [tuple(grid) for _, *grid in shapes]
        self.grid, self.patch_size = grids[0], tuple(patch_size)
        steps = [tuple(f // c for f, c in zip(fine, coarse, strict=True)) for fine, coarse in pairwise(grids)]
        convolution = convert_dim_to_conv_op(len(patch_size))
        # what the decoder reads of nnU-Net's encoders
        encoder = SimpleNamespace(
            output_channels=[dim for dim, *_ in shapes],
            strides=[None, *steps],
            kernel_sizes=[3] * len(shapes),
            conv_op=convolution,
            conv_bias=True,
            norm_op=get_matching_instancenorm(convolution),
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            dropout_op=None,
            dropout_op_kwargs=None,
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        voxels = channels * prod(patch_size) // prod(self.grid)
        self.levels = UNetDecoder(encoder, voxels, n_conv_per_stage=1, deep_supervision=False)
        # the other heads are for deep supervision
        self.levels.seg_layers = self.levels.seg_layers[-1:]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map feature maps (batch, channels, *grid), finest first, to the image (batch, channels, *patch_size)."""
        return unpatchify(self.levels(maps).flatten(2).transpose(1, 2), self.grid, self.patch_size)


class TokenDecoder(nn.Module):
    """Decode the single feature map of a ViT by MAE's transformer layers; arguments as for ``MaskedDecoder``."""

    def __init__(
        self, shape: Sequence[int], depth: int, num_heads: int, patch_size: Sequence[int], channels: int
    ) -> None:
        super().__init__()
        dim, *grid = shape
        self.tokens = MaskedDecoder(grid, dim, depth, num_heads, patch_size, channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map a list of one feature map (batch, dim, *grid) to the image (batch, channels, *patch_size)."""
        _, image = self.tokens(maps[0].flatten(2).transpose(1, 2))
        return image


def create_map_decoder(
    shapes: Sequence[Sequence[int]], patch_size: Sequence[int], channels: int, depth: int, num_heads: int
) -> PyramidDecoder | TokenDecoder:
    """Build the decoder of an encoder's feature maps.

    Args:
        shapes: (channels, *grid) of each map, finest first.
        patch_size: voxels of the image per axis.
        channels: image channels.
        depth, num_heads: number of layers and of their attention heads, for a single map.

    Raises:
        ValueError: as ``MaskedDecoder``, for a single map.
    """
    if len(shapes) > 1:
        return PyramidDecoder(shapes, patch_size, channels)
    return TokenDecoder(shapes[0], depth, num_heads, patch_size, channels)
