"""VT-UNet: a Swin U-Net whose decoder attends to the encoder's keys and values beside its own.

Peiris et al., "A Robust Volumetric Transformer for Accurate 3D Tumor Segmentation", MICCAI 2022
(https://arxiv.org/abs/2111.13300). It is the baseline of QT-UNet (Håversen, "QT-UNet", master's thesis, NTNU, tables
3.9, 4.1 and 4.10), which shares its stem, merging, expansion and heads. Defaults follow the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ._arguments import PerAxis
from ._registry import register_network, register_released_family
from ._swin_unet import BlockPlace, SwinUNet
from .layers import (
    PatchExpand,
    PatchMerging,
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    recomputed,
)
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
    """

    def attend_to(
        self, tokens: Tensor, other: KeysValues | None, query_scale: float = 1.0
    ) -> tuple[Tensor, Tensor | None, KeysValues]:
        """Attend to the tokens' own keys and values, and to others.

        Args:
            tokens: (batch, length, dim).
            other: keys and values of a block with the same windows; None for none.
            query_scale: factor of the queries that meet the others.

        Returns:
            the result of each, (batch, length, dim), and the own keys and values.
        """
        q, k, v = self._heads(self.qkv(self.partition.partition(tokens)), 3)
        crossed = None if other is None else self._project(self._mix(q * query_scale, *other))
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
        self.attn = SharedWindowAttention(dim, num_heads, partition, bias)
        self.cross_scale = self.attn.scale if reference_compat else 1.0
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
        attended, crossed, (k, v) = self.attn.attend_to(self.norm1(x), pair, self.cross_scale)
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

    def forward(self, x: Tensor) -> list[Skip | Tensor]:
        """Map the finest tokens to what the decoder gets: of each stage but the last a skip, then the bottleneck."""
        skips: list[Skip | Tensor] = []
        for stage in self.stages:
            before = x
            x, pairs = stage(x)
            skips.append((before, pairs))
        return [*skips[:-1], self.norm(x)]


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


class VTUNet(SwinUNet):
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
        full_resolution_channels: channels of a convolutional branch at full resolution that joins the tokens before
            the head; 0, as published, for none.
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

    stage_class, encoder_class, level_class = VTEncoderStage, VTEncoder, VTDecoderLevel

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
        full_resolution_channels: int = 0,
        mask_padding: bool = False,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        reference_compat: bool = False,
    ) -> None:
        super().__init__(patch_size)
        self._block_options: dict[str, Any] = {
            "activation_checkpointing": activation_checkpointing,
            "reference_compat": reference_compat,
        }
        self._assemble(
            input_channels,
            num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_stages=num_stages,
            depths=depths,
            patch_embed_stride=patch_embed_stride,
            merge_strides=merge_strides,
            in_plane_merging=in_plane_merging,
            window_sizes=window_sizes,
            drop_path_rate=drop_path_rate,
            mask_padding=mask_padding,
            activation_checkpointing=activation_checkpointing,
            deep_supervision=deep_supervision,
            auxiliary_heads=auxiliary_heads,
            strides=strides,
            full_resolution_channels=full_resolution_channels,
        )

    def make_block(self, place: BlockPlace) -> VTBlock:
        return VTBlock(
            place.dim,
            place.num_heads,
            place.partition,
            place.table_window_size,
            positions=FourierPositions(place.grid_size, place.dim) if place.in_decoder else None,
            drop_path_rate=place.drop_path_rate,
            **self._block_options,
        )

    def tokens_of(self, features: Sequence[Any]) -> Sequence[Tensor]:
        return [*(tokens for tokens, _ in features[:-1]), features[-1]]


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
