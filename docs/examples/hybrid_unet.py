"""A custom network with its planner and trainer: a convolutional U-Net with transformer blocks in its bottleneck.

The architecture follows TransUNet (Chen et al., arXiv:2102.04306) and is built from this package's and timm's layers.
docs/adding_a_network.md explains it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from nnunet_transformers.architectures import (
    PerAxis,
    SegmentationNetwork,
    check_strides,
    per_axis,
    per_stage,
    register_network,
    token_grids,
)
from nnunet_transformers.architectures.layers import ConvNormAct, PositionEmbedding
from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.tiling import TokenRules, no_windows
from nnunet_transformers.trainers.trainer import TransformerTrainer


class HybridEncoder(nn.Module):
    """Stages of two convolutions, and transformer blocks on all tokens of the last stage."""

    def __init__(
        self, dims: Sequence[int], steps: Sequence[tuple[int, ...]], grid: Sequence[int], depth: int, num_heads: int
    ) -> None:
        super().__init__()
        before, ones = (dims[0], *dims[:-1]), (1,) * len(grid)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvNormAct(b, d, 3, step), ConvNormAct(d, d, 3, ones))
            for b, d, step in zip(before, dims, (ones, *steps), strict=True)
        )
        self.position = PositionEmbedding(grid, dims[-1])
        self.blocks = nn.Sequential(*(Block(dims[-1], num_heads, qkv_bias=True) for _ in range(depth)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, dims[0], *grid) to the feature map of each stage, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        tokens = self.blocks(self.position(x.flatten(2).transpose(1, 2)))
        features[-1] = tokens.transpose(1, 2).unflatten(2, self.position.grid_size)
        return features


class HybridDecoder(nn.Module):
    """Levels that interpolate, concatenate the skip and convolve; heads, full resolution first."""

    def __init__(
        self,
        dims: Sequence[int],
        steps: Sequence[Sequence[int]],
        num_classes: int,
        num_heads: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision, self.steps = deep_supervision, [tuple(map(float, step)) for step in steps]
        ndim, skips, outputs = len(steps[0]), (0, *dims[:-1]), (dims[0], *dims[:-1])
        self.levels = nn.ModuleList(
            ConvNormAct(d + s, o, 3, (1,) * ndim) for d, s, o in zip(dims, skips, outputs, strict=True)
        )
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        self.seg_layers = nn.ModuleList(convolution(d, num_classes, 1) for d in outputs[:num_heads])

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map features, finest first, to logits (a list of them under deep supervision)."""
        x, maps = features[-1], []
        for level, step, skip in zip(self.levels[::-1], self.steps[::-1], (*features[-2::-1], None), strict=True):
            x = F.interpolate(x, scale_factor=step)
            x = level(x if skip is None else torch.cat([x, skip], dim=1))
            maps.insert(0, x)
        if not self.deep_supervision:
            return self.seg_layers[0](x)
        return [head(m) for head, m in zip(self.seg_layers, maps, strict=True)]


class HybridUNet(SegmentationNetwork):
    """Hybrid U-Net in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis; the network takes images of exactly this size.
        patch_embed_stride: stride of the finest map, one integer or one per axis.
        merge_strides: down-sampling between the stages, one integer or one entry per stage but the last.
        dims: channels of each stage.
        depth, num_heads: of the transformer.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: if the total stride does not divide the patch.
    """

    stem_channels_last = False
    token_arguments = ("patch_embed_stride", "merge_strides")
    keys_to_in_proj = ("stem.conv",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        patch_embed_stride: PerAxis = 2,
        merge_strides: int | Sequence[PerAxis] = 2,
        dims: Sequence[int] = (24, 48, 96, 192),
        depth: int = 2,
        num_heads: int = 4,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        merges = per_stage(merge_strides, len(dims) - 1, ndim, "merge_strides")
        steps = [per_axis(patch_embed_stride, ndim, "patch_embed_stride"), *merges]
        self.strides = [[1] * ndim, *map(list, steps)]
        check_strides(strides, self.strides)
        self.grid_sizes, self.feature_channels = token_grids(self.patch_size, steps), list(dims)
        self.stem = ConvNormAct(input_channels, dims[0], 3, steps[0])
        self.encoder = HybridEncoder(dims, merges, self.grid_sizes[-1], depth, num_heads)
        heads = len(dims) if (deep_supervision if auxiliary_heads is None else auxiliary_heads) else 1
        self.decoder = HybridDecoder(dims, steps, num_classes, heads, deep_supervision)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of all stages, finest first."""
        self.check_input(image)
        return self.encoder(self.stem(image))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size)."""
        return self.decoder(self.encode(image))


register_network("hybrid_unet", HybridUNet)


class nnUNetPlannerHybrid(TransformerPlanner):
    """Plans ``nnUNetHybridPlans``: four stages, attention without windows."""

    network_name = "hybrid_unet"
    token_rules = TokenRules(
        patch_embed_strides_2d=(2,), patch_embed_strides_3d=(2,), num_stages=4, min_deepest_tokens=2, windows=no_windows
    )


class nnUNetTrainerHybrid(TransformerTrainer):
    """Train the network with this package's recipe."""

    network_class = HybridUNet
    planners = ("nnUNetPlannerHybrid",)
