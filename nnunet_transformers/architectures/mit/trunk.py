"""The trunk of MiT: stem, encoder and decoder, with or without the SSL token of self-supervised pretraining.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022,
and its appendix, section 3.2. ``segmentation``, ``pair`` (pretraining in 2D and 3D) and ``classifier`` build on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import prod
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .._arguments import (
    AXIS_NAMES,
    PerAxis,
    check_depth,
    check_dimensions,
    check_image_size,
    per_axis,
    per_stage,
    token_grids,
)
from ..layers import ConvNormAct, PositionEmbedding, SpatialReductionAttention, patch_transpose, recomputed

STEM_DIM = 32
ENCODER_NORM_EPS, DECODER_NORM_EPS = 1e-6, 1e-5
T = TypeVar("T")


class InterpolatedEmbed(nn.Module):
    """Variant 2 of the appendix's Table 1: interpolate without parameters, then one linear layer for every token.

    Unlike switchable patch embedding it has the same weights in 2D and 3D.

    Args:
        in_dim, out_dim: channels before and after.
        stride: stride per axis.
        is_encoder: reduce the resolution by ``stride``, or else raise it.
    """

    def __init__(self, in_dim: int, out_dim: int, stride: Sequence[int], is_encoder: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        self.stride, self.is_encoder = tuple(stride), is_encoder

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_dim, *size) to (batch, out_dim, *grid)."""
        size = [n // s if self.is_encoder else n * s for n, s in zip(image.shape[2:], self.stride, strict=True)]
        image = F.interpolate(image, size, mode={2: "bilinear", 3: "trilinear"}[len(size)], align_corners=False)
        return self.linear(image.movedim(1, -1)).movedim(-1, 1)


class MiTBlock(nn.Module):
    """Pre-norm transformer block with spatial-reduction attention.

    Args:
        attn: the attention.
        dim: channels.
        norm_eps: epsilon of the norms.
        drop_path_rate: stochastic depth rate of this block.
    """

    def __init__(self, attn: SpatialReductionAttention, dim: int, norm_eps: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()

    def forward(self, tokens: Tensor, grid_size: Sequence[int] | None = None) -> Tensor:
        """(batch, length, dim) to the same; ``grid_size`` as in the attention."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid_size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class MiTStage(nn.Module):
    """Switchable patch embedding, position embeddings and blocks at one resolution, in encoder and decoder.

    Args:
        embed: patch embedding; down-samples in the encoder and up-samples in the decoder.
        grid_size: tokens per axis.
        blocks: the transformer layers.
        dim: channels.
        token_dim: channels of the incoming SSL token, projected to ``dim`` where they differ; None for no token.
        activation_checkpointing: recompute the blocks in the backward pass instead of storing their activations.
    """

    def __init__(
        self,
        embed: nn.Module,
        grid_size: Sequence[int],
        blocks: Sequence[MiTBlock],
        dim: int,
        token_dim: int | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.grid_size = tuple(grid_size)
        self.activation_checkpointing = activation_checkpointing
        self.embed = embed
        self.position = PositionEmbedding(grid_size, dim)
        self.token_proj, self.token_position = None, None
        if token_dim is not None:
            self.token_proj = nn.Linear(token_dim, dim) if token_dim != dim else nn.Identity()
            self.token_position = nn.Parameter(trunc_normal_(torch.zeros(1, 1, dim), std=0.02))
        self.blocks = nn.ModuleList(blocks)

    def no_weight_decay(self) -> set[str]:
        """The SSL token's position embedding; ``PositionEmbedding`` states the grid's."""
        return {"token_position"}

    def forward(
        self, image: Tensor, token: Tensor | None = None, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed a feature map at this stage's resolution and attend, together with the SSL token if there is one.

        Args:
            image: (batch, channels, *size).
            token: (batch, 1, token_dim).
            skip: (batch, dim, *grid_size), added to the embedded image.

        Returns:
            (batch, dim, *grid_size), with channels last in memory, and (batch, 1, dim) or None. The grid is that of the
            image, which in pretraining may be another than that of the position embeddings.
        """
        image = self.embed(image)
        grid_size = tuple(image.shape[2:])
        if skip is not None:
            image = image + skip
        tokens = self.position(image.flatten(2).transpose(1, 2).contiguous(), grid_size)
        if token is not None and self.token_proj is not None:
            tokens = torch.cat([self.token_proj(token) + self.token_position, tokens], dim=1)
        for block in self.blocks:
            active = self.activation_checkpointing and self.training
            tokens = recomputed(partial(block, grid_size=grid_size), tokens, active=active)
        if token is not None:
            token, tokens = tokens[:, :1], tokens[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, grid_size), token


class MiTEncoder(nn.Module):
    """The encoder stages and the SSL token that enters the first one, without a final norm.

    Args:
        stages: finest first.
        token_dim: channels of the SSL token; None for no token.
    """

    def __init__(self, stages: Sequence[MiTStage], token_dim: int | None = None) -> None:
        super().__init__()
        self.token = None
        if token_dim is not None:
            self.token = nn.Parameter(trunc_normal_(torch.zeros(1, 1, token_dim), std=0.02))
        self.stages = nn.ModuleList(stages)

    def no_weight_decay(self) -> set[str]:
        """The SSL token."""
        return {"token"}

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Map the stem's output to the feature maps of all stages, finest first, and the last stage's SSL token."""
        token = None if self.token is None else self.token.expand(image.shape[0], -1, -1)
        features = []
        for stage in self.stages:
            image, token = stage(image, token)
            features.append(image)
        return features, token


class MiTDecoder(nn.Module):
    """The decoder stages, deepest first, and the norm of the finest output."""

    def __init__(self, stages: Iterable[nn.Module], dim: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)

    def decode(self, features: Sequence[Tensor], token: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Decode encoder features, finest first, and the SSL token.

        Returns:
            decoder features, finest first, of which the finest is normalised, and the normalised token or None.
        """
        image = features[-1]
        decoded: list[Tensor] = []
        for stage, skip in zip(self.stages, reversed(features[:-1]), strict=True):
            image, token = stage(image, token, skip)
            decoded.insert(0, image)
        decoded[0] = self.norm(image.movedim(1, -1)).movedim(-1, 1)
        return decoded, None if token is None else self.norm(token)


class MiTTokenDecoder(MiTDecoder):
    """The decoder of pretraining, which returns the SSL token."""

    def forward(self, features: Sequence[Tensor], token: Tensor) -> Tensor:
        """Map encoder features, finest first, and the last stage's SSL token to the normalised token (batch, dim)."""
        _, normalised = self.decode(features, token)
        assert normalised is not None
        return normalised.squeeze(1)


class MiTTrunk(nn.Module):
    """Stem, encoder and decoder; ``forward`` returns the SSL token. ``MiT`` and ``MiTClassifier`` take its parts.

    Args:
        input_channels: image channels.
        patch_size: edge lengths in voxels, two or three of them.
        embed_dims: channels of each encoder stage; the decoder mirrors them.
        num_heads: attention heads of each encoder stage.
        decoder_num_heads: attention heads of each decoder stage, deepest first.
        depths: transformer layers of each encoder stage.
        decoder_depths: transformer layers of each decoder stage, deepest first.
        num_stages: encoder stages; longer per-stage arguments are cut to the finest stages.
        patch_embed_stride: voxels per token of the finest grid; 1, 2, 4 or 8, an integer or one per axis. The first
            stage's embedding has stride 2 where the total is above 1, the stem the remaining factor.
        merge_strides: strides of the other stages' embeddings, 1 or 2: an integer or one entry per stage.
        sr_ratios: spatial reduction of keys and values in each encoder stage, an integer or one per axis, clamped to
            the token grid.
        decoder_sr_ratios: the same in each decoder stage, deepest first.
        drop_path_rate: stochastic depth rate, rising linearly from 0 in the encoder and falling to 0 in the decoder.
        ssl_token: build the learnable SSL token of pretraining.
        reference_compat: drop tokens at the end of an axis that the reduction does not divide from keys and values, as
            the release does.
        activation_checkpointing: recompute the transformer layers in the backward pass.
        switchable_embedding: embed patches by convolutions; False for ``InterpolatedEmbed``.

    Attributes:
        strides: as in nnU-Net's plans, of the input, the stem and each stage; a stem or first stage without
            down-sampling has no entry.
        stem_stride: stride of the stem.
        embed_strides: stride of each encoder stage.
        dims, grid_sizes: channels and tokens per axis of each encoder stage.
        image_sizes: further sizes that ``forward`` takes, with interpolated position embeddings; see ``takes``.
        norm_dim: channels of the normalised SSL token.

    Raises:
        ValueError: on a patch size that the strides do not divide or that leaves one token in the last stage, and on
            arguments that contradict each other.
    """

    def __init__(
        self,
        input_channels: int,
        patch_size: Sequence[int],
        embed_dims: Sequence[int] = (48, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        decoder_num_heads: Sequence[int] = (8, 4, 2),
        depths: Sequence[int] = (1, 1, 1, 1),
        decoder_depths: Sequence[int] = (1, 1, 1),
        num_stages: int = 4,
        patch_embed_stride: PerAxis = 4,
        merge_strides: int | Sequence[PerAxis] = 2,
        sr_ratios: Sequence[PerAxis] = (6, 4, 2, 1),
        decoder_sr_ratios: Sequence[PerAxis] = (2, 4, 6),
        drop_path_rate: float = 0.0,
        ssl_token: bool = False,
        reference_compat: bool = False,
        activation_checkpointing: bool = False,
        switchable_embedding: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = tuple(int(p) for p in patch_size)
        self.input_channels = input_channels
        self.image_sizes: set[tuple[int, ...]] = set()
        ndim = check_dimensions(self.patch_size)
        if num_stages < 2:
            raise ValueError(f"num_stages must be at least 2 (one stage and the bottleneck), got {num_stages}")
        dims = _first(embed_dims, num_stages, "embed_dims")
        decoder_dims = dims[-2::-1]
        self.dims, self.norm_dim = dims, dims[0]
        self.stem_stride, first_stride = split_stride(per_axis(patch_embed_stride, ndim, "patch_embed_stride"))
        merge_strides = per_stage(merge_strides, num_stages - 1, ndim, "merge_strides")
        if any(s not in (1, 2) for stride in merge_strides for s in stride):
            raise ValueError(f"merge_strides must be 1 or 2 on every axis, got {merge_strides}")
        self.embed_strides = (first_stride, *merge_strides)
        resolutions = [list(s) for s in (self.stem_stride, first_stride) if prod(s) > 1]
        self.strides = [[1] * ndim, *resolutions, *(list(s) for s in merge_strides)]
        _, *grid_sizes = token_grids(self.patch_size, (self.stem_stride, *self.embed_strides))
        self.grid_sizes = grid_sizes
        if prod(grid_sizes[-1]) == 1:
            axis = min(range(ndim), key=self.patch_size.__getitem__)
            raise ValueError(
                f"patch_size {self.patch_size} leaves one token in the last stage, which instance norm cannot "
                f"normalise; nearest valid size: {2 * self.patch_size[axis]} on axis {axis} ({AXIS_NAMES[ndim][axis]})"
            )

        def stages(
            embeds: Sequence[nn.Module],
            grids: Sequence[Sequence[int]],
            dims: Sequence[int],
            token_dims: Sequence[int],
            heads: Sequence[int],
            depths: Sequence[int],
            reductions: Sequence[Sequence[int]],
            drop_path_rates: Sequence[float],
            is_encoder: bool,
        ) -> list[MiTStage]:
            rates = iter(drop_path_rates)
            norm_eps = ENCODER_NORM_EPS if is_encoder else DECODER_NORM_EPS
            return [
                MiTStage(
                    embed,
                    grid,
                    [
                        MiTBlock(
                            SpatialReductionAttention(dim, num_heads, grid, reduction, is_encoder, reference_compat),
                            dim,
                            norm_eps,
                            next(rates),
                        )
                        for _ in range(depth)
                    ],
                    dim,
                    token_dim if ssl_token else None,
                    activation_checkpointing,
                )
                for embed, grid, dim, token_dim, num_heads, depth, reduction in zip(
                    embeds, grids, dims, token_dims, heads, depths, reductions, strict=True
                )
            ]

        depths = _first(depths, num_stages, "depths")
        decoder_depths = _last(decoder_depths, num_stages - 1, "decoder_depths")
        check_depth(depths, "depths")
        check_depth(decoder_depths, "decoder_depths")

        def embed(i: int, o: int, stride: Sequence[int], kernel: int = 3) -> nn.Module:
            return ConvNormAct(i, o, kernel, stride) if switchable_embedding else InterpolatedEmbed(i, o, stride)

        def raised(i: int, o: int, stride: Sequence[int]) -> nn.Module:
            if not switchable_embedding:
                return InterpolatedEmbed(i, o, stride, is_encoder=False)
            return patch_transpose(i, o, stride, channels_last=False)

        self.stem = embed(input_channels, STEM_DIM, self.stem_stride, kernel=7)
        encoder_stages = stages(
            [embed(i, o, s) for i, o, s in zip((STEM_DIM, *dims[:-1]), dims, self.embed_strides, strict=True)],
            grid_sizes,
            dims,
            (dims[0], *dims[:-1]),
            _first(num_heads, num_stages, "num_heads"),
            depths,
            per_stage(_first(sr_ratios, num_stages, "sr_ratios"), num_stages, ndim, "sr_ratios"),
            np.linspace(0, drop_path_rate, sum(depths)).tolist(),
            is_encoder=True,
        )
        self.encoder = MiTEncoder(encoder_stages, dims[0] if ssl_token else None)
        decoder_stages = stages(
            [raised(i, o, s) for i, o, s in zip(dims[:0:-1], decoder_dims, merge_strides[::-1], strict=True)],
            grid_sizes[-2::-1],
            decoder_dims,
            dims[:0:-1],
            _last(decoder_num_heads, num_stages - 1, "decoder_num_heads"),
            decoder_depths,
            per_stage(
                _last(decoder_sr_ratios, num_stages - 1, "decoder_sr_ratios"),
                num_stages - 1,
                ndim,
                "decoder_sr_ratios",
            ),
            np.linspace(drop_path_rate, 0, sum(decoder_depths)).tolist(),
            is_encoder=False,
        )
        self.decoder = MiTTokenDecoder(decoder_stages, dims[0])
        self.apply(init_weights)

    def forward(self, image: Tensor) -> Tensor:
        """Map images, (batch, input_channels, *patch_size or one of image_sizes), to the SSL token, (batch, dim).

        Raises:
            ValueError: on an image of another size.
        """
        if tuple(image.shape[2:]) not in self.image_sizes:
            check_image_size(image, self.patch_size)
        return self.decoder(*self.encoder(self.stem(image)))

    def takes(self, size: Sequence[int]) -> bool:
        """Whether images of another size have whole tokens, and more than one of them in the last stage."""
        total = [prod(axis) for axis in zip(self.stem_stride, *self.embed_strides, strict=True)]
        is_whole = not any(n % s for n, s in zip(size, total, strict=True))
        return is_whole and prod(size) > prod(total)


def split_stride(patch_embed_stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the stride into those of the stem and of the first stage's embedding, which is 2 where the total exceeds 1.

    Raises:
        ValueError: if a stride is not 1, 2, 4 or 8.
    """
    if any(s not in (1, 2, 4, 8) for s in patch_embed_stride):
        raise ValueError(f"patch_embed_stride must be 1, 2, 4 or 8 on every axis, got {tuple(patch_embed_stride)}")
    first = tuple(min(2, s) for s in patch_embed_stride)
    return tuple(s // f for s, f in zip(patch_embed_stride, first, strict=True)), first


def init_weights(module: nn.Module) -> None:
    """Initialise as the release does; transposed convolutions keep PyTorch's initialisation."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _first(values: Sequence[T], count: int, name: str) -> tuple[T, ...]:
    _check_count(values, count, name)
    return tuple(values[:count])


def _last(values: Sequence[T], count: int, name: str) -> tuple[T, ...]:
    _check_count(values, count, name)
    return tuple(values[-count:])


def _check_count(values: Sequence[T], count: int, name: str) -> None:
    if isinstance(values, int) or len(values) < count:
        raise ValueError(f"{name} must have an entry for each of {count} stages, got {values}")
