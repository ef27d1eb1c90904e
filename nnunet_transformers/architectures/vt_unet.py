"""VT-UNet: a Swin U-Net whose decoder attends to the encoder's keys and values beside its own.

Peiris et al., "A Robust Volumetric Transformer for Accurate 3D Tumor Segmentation", MICCAI 2022
(https://arxiv.org/abs/2111.13300). It is the baseline of QT-UNet (Håversen, "QT-UNet", master's thesis, NTNU, tables
3.9, 4.1 and 4.10), which shares its stem, merging, expansion and heads. Defaults follow the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod

import numpy as np
import torch
from timm.layers import DropPath, Mlp
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
from ._registry import register_network, register_released_family
from .layers import (
    PatchEmbed,
    PatchExpand,
    PatchMerging,
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    recomputed,
)
from .qt_unet import QTDecoder, init_weights
from .qt_unet import checkpoint_filter_fn as from_qt_unet

# share of the branch that attends to the encoder (section 2.2; the release's value)
CROSS_SHARE = 0.3
# keys and values of a block, (batch, windows, heads, window_length, head_dim) each
KeysValues = tuple[Tensor, Tensor]
# a stage's input, and keys and values of its last unshifted and its last shifted block
Skip = tuple[Tensor, list[KeysValues]]


class SharedWindowAttention(WindowAttention):
    """Self-attention in windows that also lets its queries attend to another block's keys and values.

    Both use the same bias and projection.

    Args:
        dim, num_heads, partition, bias: as ``WindowAttention``.
        reference_compat: scale the queries of the second attention twice, as the release does.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: WindowPartition,
        bias: RelativePositionBias,
        reference_compat: bool,
    ) -> None:
        super().__init__(dim, num_heads, partition, bias)
        self.cross_scale = self.scale if reference_compat else 1.0

    def attend_to(self, tokens: Tensor, other: KeysValues | None) -> tuple[Tensor, Tensor | None, KeysValues]:
        """Attend to the tokens' own keys and values, and to others.

        Args:
            tokens: (batch, length, dim).
            other: keys and values of a block with the same windows; None for none.

        Returns:
            the result of each, (batch, length, dim), and the own keys and values.
        """
        q, k, v = self._heads(self.qkv(self.partition.partition(tokens)), 3)
        crossed = None if other is None else self._project(self._mix(q * self.cross_scale, *other))
        return self._project(self._mix(q, k, v)), crossed, (k, v)

    def _project(self, heads: Tensor) -> Tensor:
        return self.partition.reverse(self.proj(heads.transpose(2, 3).flatten(3)))


class FourierPositions(nn.Module):
    """Sines and cosines of each token's position, axis by axis, as one constant (length, dim).

    Args:
        grid_size: tokens per axis.
        dim: channels.
    """

    def __init__(self, grid_size: Sequence[int], dim: int) -> None:
        super().__init__()
        channels = 2 * ceil(dim / (2 * len(grid_size)))
        frequencies = 10000.0 ** (-torch.arange(0, channels, 2) / channels)
        parts = []
        for axis, size in enumerate(grid_size):
            angles = torch.arange(size)[:, None] * frequencies
            waves = torch.cat([angles.sin(), angles.cos()], dim=1)
            shape = [size if a == axis else 1 for a in range(len(grid_size))]
            parts.append(waves.view(*shape, channels).expand(*grid_size, channels))
        # a constant, but no buffer: DistributedDataParallel sends those to every process in every step
        self.encoding = torch.cat(parts, dim=-1)[..., :dim].flatten(0, -2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierPositions:
        super()._apply(fn, recurse)
        self.encoding = fn(self.encoding)
        return self

    def forward(self) -> Tensor:
        """Return the encoding, (1, length, dim)."""
        return self.encoding.unsqueeze(0)


class VTBlock(nn.Module):
    """A pre-norm Swin block; in the decoder with a second branch that attends to the encoder (paper, section 2.2).

    Both branches share norms, attention weights and MLP. Their convex combination is joined by the MLP of the
    positions.

    Args:
        dim: channels.
        num_heads: attention heads.
        partition: the windows of this block.
        table_window_size: window of the bias table; the partition's may be smaller.
        positions: of the tokens; None in the encoder.
        drop_path_rate: stochastic depth rate of this block.
        activation_checkpointing: recompute the block in the backward pass.
        reference_compat: compute as the release does: clamped bias tables and twice scaled queries.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: WindowPartition,
        table_window_size: Sequence[int],
        positions: FourierPositions | None,
        drop_path_rate: float,
        activation_checkpointing: bool,
        reference_compat: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        bias = RelativePositionBias(table_window_size, partition.window_size, num_heads, 0.02, reference_compat)
        self.attn = SharedWindowAttention(dim, num_heads, partition, bias, reference_compat)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.positions = positions
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor, other: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """Map (batch, length, dim) to the same shape, and return the block's keys and values.

        Args:
            x: tokens.
            other: the encoder's keys and values, in the decoder.
        """
        active = self.activation_checkpointing and self.training
        out, k, v = recomputed(self._forward, x, *(other or ()), active=active)
        return out, (k, v)

    def _forward(self, x: Tensor, *other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pair = (other[0], other[1]) if other else None
        attended, crossed, (k, v) = self.attn.attend_to(self.norm1(x), pair)
        out = self._feed_forward(x + self.drop_path(attended))
        if crossed is not None and self.positions is not None:
            crossed = self._feed_forward(x + self.drop_path(crossed))
            out = torch.lerp(out, crossed, CROSS_SHARE) + self.mlp(self.norm2(self.positions()))
        return out, k, v

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VTEncoderStage(nn.Module):
    """Blocks at one resolution, then patch merging (none in the bottleneck)."""

    def __init__(self, blocks: Sequence[VTBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """Map (batch, length, dim) to the next stage's tokens, with the keys and values for the decoder."""
        pairs: dict[int, KeysValues] = {}
        for index, block in enumerate(self.blocks):
            x, pairs[index % 2] = block(x)
        return x if self.downsample is None else self.downsample(x), list(pairs.values())


class VTEncoder(nn.Module):
    """The stages and a final norm."""

    def __init__(self, stages: Sequence[VTEncoderStage], dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[list[Skip], Tensor]:
        """Map the finest tokens to what the decoder gets of each stage but the last, and the normalised bottleneck."""
        skips = []
        for stage in self.stages:
            before = x
            x, pairs = stage(x)
            skips.append((before, pairs))
        return skips[:-1], self.norm(x)


class VTDecoderLevel(nn.Module):
    """Up-sample the deeper level, fuse it with the skip, and let blocks attend to both."""

    def __init__(self, expand: PatchExpand, blocks: Sequence[VTBlock], dim: int) -> None:
        super().__init__()
        self.expand = expand
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, skip: Skip) -> Tensor:
        """Map the deeper level's tokens to (batch, length, dim) of the skip's."""
        tokens, pairs = skip
        x = self.fuse(torch.cat([self.expand(x), tokens], dim=-1))
        for index, block in enumerate(self.blocks):
            x, _ = block(x, pairs[index % 2])
        return x


class VTUNet(SegmentationNetwork):
    """VT-UNet in 3D, and in 2D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: edge lengths in voxels; two for a 2D network, three for a 3D one.
        embed_dim: channels of the finest tokens, doubled at each stage; a multiple of ``num_heads``.
        num_heads: heads of the first stage, doubled at each stage.
        num_stages: resolutions, including the bottleneck.
        depths: blocks per stage; two each and one in the bottleneck by default. The decoder mirrors the encoder.
        patch_embed_stride: voxels per token, one integer or one per axis.
        merge_strides: tokens merged at the end of each stage but the last, one integer or one entry per stage.
        in_plane_merging: merge in-plane only, as published; False is the thesis's "VT-UNet-A". Ignored where
            ``merge_strides`` is given.
        window_sizes: attention window, one integer or one entry per stage; clamped to the token grid.
        drop_path_rate: stochastic depth rate of the last encoder block.
        mask_padding: mask the zero tokens that pad windows; the release attends to them.
        activation_checkpointing: recompute blocks and the full-resolution head in the backward pass.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.
        reference_compat: compute as the release does: wrong bias offsets where its windows are clamped, and queries
            scaled twice where they attend to the encoder.

    Raises:
        ValueError: on a patch size that the strides do not divide or arguments that contradict each other.

    Examples:
        >>> import torch
        >>> network = VTUNet(input_channels=1, num_classes=3, patch_size=(32, 32, 32), num_stages=2)
        >>> network(torch.zeros(1, 1, 32, 32, 32)).shape
        torch.Size([1, 3, 32, 32, 32])
    """

    token_arguments = TOKEN_ARGUMENTS

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 48,
        num_heads: int = 3,
        num_stages: int = 4,
        depths: Sequence[int] | None = None,
        patch_embed_stride: PerAxis = 4,
        merge_strides: int | Sequence[PerAxis] | None = None,
        in_plane_merging: bool = True,
        window_sizes: int | Sequence[PerAxis] = 7,
        drop_path_rate: float = 0.1,
        mask_padding: bool = False,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        reference_compat: bool = False,
    ) -> None:
        super().__init__(patch_size)
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

        def blocks(stage: int, in_decoder: bool) -> list[VTBlock]:
            positions = FourierPositions(grid_sizes[stage], dims[stage]) if in_decoder else None
            return [
                VTBlock(
                    dim=dims[stage],
                    num_heads=num_heads * 2**stage,
                    partition=partitions[stage][index % 2],
                    table_window_size=window_sizes[stage],
                    positions=positions,
                    drop_path_rate=drop_path_rates[sum(depths[:stage]) + index],
                    activation_checkpointing=activation_checkpointing,
                    reference_compat=reference_compat,
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
            stages.append(VTEncoderStage(blocks(stage, in_decoder=False), downsample))
        self.encoder = VTEncoder(stages, dims[-1])
        for stage in reversed(range(num_stages - 1)):
            expand = PatchExpand(grid_sizes[stage + 1], merge_strides[stage], dims[stage + 1], dims[stage])
            levels.append(VTDecoderLevel(expand, blocks(stage, in_decoder=True), dims[stage]))
        self.decoder = QTDecoder(
            levels,
            dims,
            grid_sizes,
            patch_embed_stride,
            num_classes,
            auxiliary_heads,
            deep_supervision,
            activation_checkpointing,
        )
        self.apply(init_weights)

    def encode(self, image: Tensor) -> list[Tensor]:
        self.check_input(image)
        skips, bottleneck = self.encoder(self.stem(image))
        features = [*(tokens for tokens, _ in skips), bottleneck]
        return [f.transpose(1, 2).unflatten(2, grid) for f, grid in zip(features, self.grid_sizes, strict=True)]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        self.check_input(image)
        skips, bottleneck = self.encoder(self.stem(image))
        return self.decoder([*skips, bottleneck])


def checkpoint_filter_fn(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights of the authors' release, and of the thesis's baseline, to ``VTUNet``.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True``.

    Raises:
        ValueError: if these are not the weights of a VT-UNet.
    """
    encoder = ("patch_embed.", "layers.", "norm.")
    named = {f"encoder.{key}" if key.startswith(encoder) else key: value for key, value in state_dict.items()}
    is_vt = "patch_embed.proj.weight" in state_dict and "layers_up.1.blocks.0.attn.qkv.weight" in state_dict
    if not is_vt or any(".cross_attn." in key for key in state_dict):
        raise ValueError("these are not the weights of a VT-UNet: its patch embedding, stages or decoder are missing")
    return from_qt_unet(named)


register_released_family("vt_unet", checkpoint_filter_fn, head="decoder.seg_layers.0.weight")
register_network("vt_unet_tiny", VTUNet, embed_dim=48)
register_network("vt_unet_small", VTUNet, embed_dim=72)
register_network("vt_unet_base", VTUNet, embed_dim=96)
register_network("vt_unet_a_tiny", VTUNet, embed_dim=48, in_plane_merging=False)
register_network("vt_unet_a_small", VTUNet, embed_dim=72, in_plane_merging=False)
register_network("vt_unet_a_base", VTUNet, embed_dim=96, in_plane_merging=False)
