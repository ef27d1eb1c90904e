"""QT-UNet: an all-Swin U-Net whose decoder queries the encoder by cross-attention.

Håversen, "QT-UNet", master's thesis, NTNU, chapter 3. Defaults follow the author's release, which produced the
published results; the arguments state where thesis and release differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ._arguments import PerAxis
from ._registry import RenamingRule, register_network, register_released_family
from ._swin_unet import BlockPlace, SwinUNet
from .layers import (
    PatchExpand,
    PatchMerging,
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    recomputed,
)


class QTBlock(nn.Module):
    """Self-attention, cross-attention to the encoder (decoder only) and MLP (thesis, sections 3.3.3 and 3.3.6).

    Args:
        dim: channels.
        num_heads: attention heads.
        partition: the windows of this block.
        table_window_size: window of the bias tables; the partition's may be smaller.
        cross_attention: also attend to a context.
        norm_placement: "post" normalises after each residual sum (the release), "pre" before each branch.
        drop_path_rate: stochastic depth rate of this block.
        activation_checkpointing: recompute the block in the backward pass.
        reference_compat: read clamped bias tables as the release does.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        partition: WindowPartition,
        table_window_size: Sequence[int],
        cross_attention: bool,
        norm_placement: str,
        drop_path_rate: float,
        activation_checkpointing: bool,
        reference_compat: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.post_norm = norm_placement == "post"

        def attention(cross_attention: bool) -> WindowAttention:
            init_std = 0.0 if cross_attention else 0.02
            bias = RelativePositionBias(table_window_size, partition.window_size, num_heads, init_std, reference_compat)
            return WindowAttention(dim, num_heads, partition, bias, cross_attention)

        self.attn = attention(cross_attention=False)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = attention(cross_attention=True) if cross_attention else None
        self.norm2 = nn.LayerNorm(dim) if cross_attention else None
        self.norm_context = nn.LayerNorm(dim) if cross_attention and not self.post_norm else None
        self.mlp = Mlp(dim, 4 * dim)
        self.norm3 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map (batch, length, dim) to the same shape; ``context`` has it as well."""
        active = self.activation_checkpointing and self.training
        return recomputed(self._forward, *([x] if context is None else [x, context]), active=active)

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.drop_path(self.attn(x)))
            if self.cross_attn is not None and self.norm2 is not None:
                x = self.norm2(x + self.drop_path(self.cross_attn(x, context)))
            return self.norm3(x + self.drop_path(self.mlp(x)))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        if self.cross_attn is not None and self.norm2 is not None and self.norm_context is not None:
            x = x + self.drop_path(self.cross_attn(self.norm2(x), self.norm_context(context)))
        return x + self.drop_path(self.mlp(self.norm3(x)))


class QTEncoderStage(nn.Module):
    """Blocks at one resolution, then patch merging (none in the bottleneck)."""

    def __init__(self, blocks: Sequence[QTBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, dim) to the next stage's tokens."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class QTEncoder(nn.Module):
    """The stages and a final norm (thesis, section 3.3.2)."""

    def __init__(self, stages: Sequence[QTEncoderStage], dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the finest tokens to all resolutions, finest first: each stage's input and the normalised bottleneck."""
        features = []
        for stage in self.stages:
            features.append(x)
            x = stage(x)
        features[-1] = self.norm(x)
        return features


class QTDecoderLevel(nn.Module):
    """Up-sample the deeper level, fuse it with the skip, and let blocks query the skip (thesis, section 3.3.5)."""

    def __init__(self, expand: PatchExpand, blocks: Sequence[QTBlock], dim: int) -> None:
        super().__init__()
        self.expand = expand
        self.fuse = nn.Linear(2 * dim, dim, bias=False)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map the deeper level's tokens and the skip (batch, length, dim) to the skip's shape."""
        x = self.fuse(torch.cat([self.expand(x), skip], dim=-1))
        for block in self.blocks:
            x = block(x, skip)
        return x


class QTUNet(SwinUNet):
    """QT-UNet in 2D and 3D.

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
        in_plane_merging: merge in-plane only (the thesis's "-A" variant); ignored where ``merge_strides`` is given.
        window_sizes: attention window, one integer or one entry per stage; clamped to the token grid.
        cross_attention: whether the decoder queries the encoder; False is the thesis's "2D-A".
        norm_placement: "post" (the release) or "pre".
        drop_path_rate: stochastic depth rate of the last encoder block, 0.1 in the release and 0.2 in the thesis.
        full_resolution_channels: channels of a convolutional branch at full resolution that joins the tokens before
            the head; 0, as published, for none.
        mask_padding: mask the zero tokens that pad windows; the release attends to them.
        activation_checkpointing: recompute blocks and the full-resolution head in the backward pass.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.
        reference_compat: reproduce the release's wrong bias offsets where its windows are clamped.

    Raises:
        ValueError: on a patch size that the strides do not divide or arguments that contradict each other.

    Examples:
        >>> import torch
        >>> network = QTUNet(input_channels=1, num_classes=3, patch_size=(32, 32, 32), num_stages=2)
        >>> network(torch.zeros(1, 1, 32, 32, 32)).shape
        torch.Size([1, 3, 32, 32, 32])
    """

    stage_class, encoder_class, level_class = QTEncoderStage, QTEncoder, QTDecoderLevel

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
        in_plane_merging: bool = False,
        window_sizes: int | Sequence[PerAxis] = 7,
        cross_attention: bool = True,
        norm_placement: str = "post",
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
        if norm_placement not in ("post", "pre"):
            raise ValueError(f"norm_placement must be 'post' or 'pre', got {norm_placement!r}")
        self._block_options: dict[str, Any] = {
            "norm_placement": norm_placement,
            "activation_checkpointing": activation_checkpointing,
            "reference_compat": reference_compat,
        }
        self._cross_attention = cross_attention
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

    def make_block(self, place: BlockPlace) -> QTBlock:
        cross_attention = self._cross_attention and place.in_decoder
        return QTBlock(
            place.dim,
            place.num_heads,
            place.partition,
            place.table_window_size,
            drop_path_rate=place.drop_path_rate,
            cross_attention=cross_attention,
            **self._block_options,
        )


def checkpoint_filter_fn(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights of the author's release (3D, and the layout of its 2D port) to ``QTUNet``.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True``; of a file with an
        encoder alone, as the release has them from pretraining, its stem and encoder.

    Raises:
        ValueError: if these are not the weights of a released QT-UNet.
    """
    is_2d_port = "pe_norm.weight" in state_dict
    if is_2d_port:
        state_dict = {_from_2d_port(key): value for key, value in state_dict.items()}
    depth = sum(re.fullmatch(r"concat_back_dim\.\d+\.weight", key) is not None for key in state_dict)

    def level(match: re.Match[str]) -> str:
        return f"decoder.levels.{int(match[1]) - 1}."

    rules: list[RenamingRule] = [
        (r"^(encoder\.)?patch_embed\.", "stem."),
        (r"^encoder\.layers\.", "encoder.stages."),
        (r"^concat_back_dim\.(\d+)\.", lambda m: level(m) + "fuse."),
        (r"^layers_up\.(\d+)\.upsample\.expand\.", lambda m: f"decoder.levels.{m[1]}.expand.expand."),
        (r"^layers_up\.(\d+)\.upsample\.norm\.", lambda m: f"decoder.levels.{m[1]}.expand.norm."),
        (r"^layers_up\.0\.(expand|norm)\.", lambda m: f"decoder.levels.0.expand.{m[1]}."),
        (r"^layers_up\.(\d+)\.", level),
        (r"^norm_up\.", "decoder.norm."),
        (r"^up\.expand\.", "decoder.expand."),
        (r"^up\.norm\.", "decoder.expand_norm."),
        (r"^output\.", "decoder.seg_layers.0."),
        (r"\.relative_position_bias_table$", ".bias.table"),
    ]
    translated = {}
    for key, value in state_dict.items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        translated[key] = value.flatten(1) if key == "decoder.seg_layers.0.weight" else value
    if not depth:  # besides an encoder, the files of pretraining hold the heads of its tasks
        translated = {key: value for key, value in translated.items() if key.startswith(("stem.", "encoder."))}
    if "stem.proj.weight" not in translated or "encoder.layers.0.blocks.0.norm1.weight" not in state_dict:
        raise ValueError("these are not the weights of a released QT-UNet: no patch embedding or no encoder stage")
    return translated


def _from_2d_port(key: str) -> str:
    """Translate a name of the 2D port, whose decoder counts levels from the finest, to the 3D release."""
    key = re.sub(r"^patch_embed\.(weight|bias)$", r"encoder.patch_embed.proj.\1", key)
    key = re.sub(r"^pe_norm\.", "encoder.patch_embed.norm.", key)
    key = re.sub(r"^(layers|norm)\.", r"encoder.\1.", key)
    key = re.sub(r"^layers_up\.(\d+)\.", lambda m: f"layers_up.{3 - int(m[1])}.", key)
    key = re.sub(r"^up0\.", "layers_up.0.", key)
    return re.sub(r"^concat\.(\d+)\.", lambda m: f"concat_back_dim.{3 - int(m[1])}.", key)


register_released_family(
    "qt_unet",
    checkpoint_filter_fn,
    head="decoder.seg_layers.0.weight",
    variants=({}, {"cross_attention": False}),
)
register_network("qt_unet_tiny", QTUNet, embed_dim=48)
register_network("qt_unet_small", QTUNet, embed_dim=72)
register_network("qt_unet_base", QTUNet, embed_dim=96)
register_network("qt_unet_a_tiny", QTUNet, embed_dim=48, in_plane_merging=True)
register_network("qt_unet_a_small", QTUNet, embed_dim=72, in_plane_merging=True)
register_network("qt_unet_a_base", QTUNet, embed_dim=96, in_plane_merging=True)
