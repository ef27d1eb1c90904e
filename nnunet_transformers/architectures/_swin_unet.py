"""What the Swin U-Nets share: patch embedding, windows, merging, expansion and heads, around blocks of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from ._arguments import (
    PerAxis,
    check_depth,
    check_dimensions,
    check_strides,
    one_per_stage,
    per_axis,
    per_stage,
    token_grids,
)
from ._network import TOKEN_ARGUMENTS, SegmentationNetwork
from .layers import (
    FullResolutionBranch,
    PatchEmbed,
    PatchExpand,
    PatchMerging,
    WindowPartition,
    apply_in_chunks,
    recomputed,
    tokens_to_image,
)


@dataclass(frozen=True)
class BlockPlace:
    """Where a block stands.

    Attributes:
        dim, num_heads: channels and attention heads.
        grid_size: tokens per axis.
        partition: the windows.
        table_window_size: window of the bias tables; the partition's may be smaller.
        drop_path_rate: stochastic depth rate.
        in_decoder: whether it is in the decoder.
    """

    dim: int
    num_heads: int
    grid_size: tuple[int, ...]
    partition: WindowPartition
    table_window_size: tuple[int, ...]
    drop_path_rate: float
    in_decoder: bool


class SwinDecoder(nn.Module):
    """The levels, deepest first, and the segmentation heads, full resolution first.

    The published full-resolution head works on tokens: norm and classifier are pointwise, so they precede the pixel
    shuffle into an image, which then moves ``num_classes`` channels instead of ``dim``.
    """

    def __init__(
        self,
        levels: Sequence[nn.Module],
        dims: Sequence[int],
        grid_sizes: Sequence[Sequence[int]],
        patch_embed_stride: Sequence[int],
        num_classes: int,
        auxiliary_heads: bool,
        deep_supervision: bool,
        activation_checkpointing: bool,
        full_resolution: FullResolutionBranch | None,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.deep_supervision = deep_supervision
        self.levels = nn.ModuleList(levels)
        self.grid_sizes = tuple(tuple(g) for g in grid_sizes)
        self.patch_embed_stride = tuple(patch_embed_stride)
        # at stride 1 the finest tokens are voxels, whose head is the full-resolution one
        self.auxiliary_levels = range(int(prod(self.patch_embed_stride) == 1), len(levels))
        self.full_resolution = full_resolution
        head: nn.Module
        if full_resolution is None:
            self.norm = nn.LayerNorm(dims[0])
            self.expand = nn.Linear(dims[0], prod(self.patch_embed_stride) * dims[0], bias=False)
            self.expand_norm = nn.LayerNorm(dims[0])
            head = nn.Linear(dims[0], num_classes, bias=False)
        else:
            convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(self.patch_embed_stride)]
            head = convolution(full_resolution.fuse.conv.out_channels, num_classes, kernel_size=1)
        self.seg_layers = nn.ModuleList([head])
        for level in self.auxiliary_levels if auxiliary_heads else ():
            self.seg_layers.append(nn.Sequential(nn.LayerNorm(dims[level]), nn.Linear(dims[level], num_classes)))

    def forward(self, image: Tensor, features: Sequence[Any]) -> Tensor | list[Tensor]:
        """Map encoder tokens, finest first, to logits (a list of them under deep supervision).

        Args:
            image: (batch, input_channels, *patch_size), for the branch at full resolution.
            features: what the levels take of each resolution, then the tokens of the bottleneck.
        """
        x = features[-1]
        tokens: list[Tensor] = []
        for level, skip in zip(self.levels, reversed(features[:-1]), strict=True):
            x = level(x, skip)
            tokens.insert(0, x)
        outputs = [self._full_resolution_logits(x, image)]
        if not self.deep_supervision:
            return outputs[0]
        for head, index in zip(self.seg_layers[1:], self.auxiliary_levels, strict=True):
            grid_size = self.grid_sizes[index]
            outputs.append(tokens_to_image(head(tokens[index]), grid_size, (1,) * len(grid_size)))
        return outputs

    def _full_resolution_logits(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Map (batch, length, dim) and the image to logits (batch, num_classes, *patch_size)."""
        is_recomputed = self.activation_checkpointing and self.training
        if self.full_resolution is not None:
            grid = tokens.unflatten(1, self.grid_sizes[0])
            return self.seg_layers[0](recomputed(self.full_resolution, grid, image, active=is_recomputed))
        logits = apply_in_chunks(self._classify, tokens, self.expand.out_features, is_recomputed)
        return tokens_to_image(logits, self.grid_sizes[0], self.patch_embed_stride)

    def _classify(self, tokens: Tensor) -> Tensor:
        """Map (batch, length, dim) to the logits of each token's voxels, (batch, length, voxels x classes)."""
        voxels = self.expand(self.norm(tokens)).unflatten(-1, (-1, self.norm.normalized_shape[0]))
        return self.seg_layers[0](self.expand_norm(voxels)).flatten(2)


class SwinUNet(SegmentationNetwork):
    """Base of the Swin U-Nets. A subclass takes the arguments, states its parts and makes its blocks.

    Attributes:
        stage_class: built from (blocks, down-sampling or None).
        encoder_class: built from (stages, channels of the bottleneck).
        level_class: a level of the decoder, built from (expansion, blocks, channels).
    """

    token_arguments = TOKEN_ARGUMENTS
    removable: Mapping[str, str] = MappingProxyType(
        {
            "attention": r"(.*\.(?:attn|cross_attn))\.proj",
            "blocks": r"((?:encoder\.stages|decoder\.levels)\.\d+\.blocks\.\d+)",
        }
    )
    stage_class: ClassVar[type[nn.Module]]
    encoder_class: ClassVar[type[nn.Module]]
    level_class: ClassVar[type[nn.Module]]

    @abstractmethod
    def make_block(self, place: BlockPlace) -> nn.Module:
        """Create the block of a place."""

    def _assemble(
        self,
        input_channels: int,
        num_classes: int,
        *,
        embed_dim: int,
        num_heads: int,
        num_stages: int,
        depths: Sequence[int] | None,
        patch_embed_stride: PerAxis,
        merge_strides: int | Sequence[PerAxis] | None,
        in_plane_merging: bool,
        window_sizes: int | Sequence[PerAxis],
        drop_path_rate: float,
        mask_padding: bool,
        activation_checkpointing: bool,
        deep_supervision: bool,
        auxiliary_heads: bool | None,
        strides: Sequence[Sequence[int]] | None,
        full_resolution_channels: int,
    ) -> None:
        """Check the arguments and build stem, encoder and decoder.

        Raises:
            ValueError: on a patch size that the strides do not divide or arguments that contradict each other.
        """
        ndim = check_dimensions(self.patch_size)
        if num_stages < 2:
            raise ValueError(f"num_stages must be at least 2 (one stage and the bottleneck), got {num_stages}")
        check_depth((num_stages,), "num_stages")
        depths = one_per_stage((*(2,) * (num_stages - 1), 1) if depths is None else depths, num_stages, "depths")
        check_depth(depths, "depths")
        patch_embed_stride = per_axis(patch_embed_stride, ndim, "patch_embed_stride")
        if merge_strides is None:
            merge_strides = [(1, 2, 2) if in_plane_merging and ndim == 3 else 2] * (num_stages - 1)
        merge_strides = per_stage(merge_strides, num_stages - 1, ndim, "merge_strides")
        window_sizes = per_stage(window_sizes, num_stages, ndim, "window_sizes")
        self.strides = [[1] * ndim] + [list(s) for s in (patch_embed_stride, *merge_strides)]
        if prod(patch_embed_stride) == 1:
            self.strides.pop(0)
        check_strides(strides, self.strides)
        grid_sizes = token_grids(self.patch_size, (patch_embed_stride, *merge_strides))
        self.resolved_arguments = {"depths": depths, "merge_strides": merge_strides, "window_sizes": window_sizes}
        if auxiliary_heads is None:
            auxiliary_heads = deep_supervision
        dims = [embed_dim * 2**stage for stage in range(num_stages)]
        self.grid_sizes, self.feature_channels = grid_sizes, dims
        drop_path_rates = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        partitions = [
            [WindowPartition(g, w, shifted, mask_padding) for shifted in (False, True)]
            for g, w in zip(grid_sizes, window_sizes, strict=True)
        ]

        def blocks(stage: int, in_decoder: bool) -> list[nn.Module]:
            return [
                self.make_block(
                    BlockPlace(
                        dim=dims[stage],
                        num_heads=num_heads * 2**stage,
                        grid_size=tuple(grid_sizes[stage]),
                        partition=partitions[stage][index % 2],
                        table_window_size=window_sizes[stage],
                        drop_path_rate=drop_path_rates[sum(depths[:stage]) + index],
                        in_decoder=in_decoder,
                    )
                )
                for index in range(depths[stage])
            ]

        self.stem = PatchEmbed(input_channels, embed_dim, patch_embed_stride)
        stages, levels = [], []
        for stage in range(num_stages):
            is_last = stage == num_stages - 1
            downsample = (
                None if is_last else PatchMerging(grid_sizes[stage], merge_strides[stage], *dims[stage : stage + 2])
            )
            stages.append(self.stage_class(blocks(stage, in_decoder=False), downsample))
        self.encoder = self.encoder_class(stages, dims[-1])
        for stage in reversed(range(num_stages - 1)):
            expand = PatchExpand(grid_sizes[stage + 1], merge_strides[stage], dims[stage + 1], dims[stage])
            levels.append(self.level_class(expand, blocks(stage, in_decoder=True), dims[stage]))
        self.decoder = SwinDecoder(
            levels,
            dims,
            grid_sizes,
            patch_embed_stride,
            num_classes,
            auxiliary_heads,
            deep_supervision,
            activation_checkpointing,
            FullResolutionBranch(input_channels, dims[0], full_resolution_channels, patch_embed_stride)
            if full_resolution_channels
            else None,
        )
        self.apply(_init_weights)

    def encode(self, image: Tensor) -> list[Tensor]:
        self.check_input(image)
        features = self.tokens_of(self.encoder(self.stem(image)))
        return [f.transpose(1, 2).unflatten(2, grid) for f, grid in zip(features, self.grid_sizes, strict=True)]

    def tokens_of(self, features: Sequence[Any]) -> Sequence[Tensor]:
        """The tokens (batch, length, dim) of each resolution, of what the encoder passes to the decoder."""
        return features

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        self.check_input(image)
        return self.decoder(image, self.encoder(self.stem(image)))


def _init_weights(module: nn.Module) -> None:
    """Initialise a linear layer by Xavier's rule."""
    # The release draws from a normal of std 0.02 as Swin does, whose layers are 2 to 16 times as wide; at 48 channels
    # every branch then starts near zero and training stalls (benchmarks/results/hippocampus.md)
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
