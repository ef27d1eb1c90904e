"""MyNetwork: a U-Net in 2D and 3D of MetaFormer's blocks (Yu et al., CVPR 2022); put yours in place of ``Block``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
from nnunet_transformers.architectures.layers import ConvNormAct

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Block(nn.Module):
    """A mixer of positions, here a depth-wise convolution, and an MLP; each with norm and residual.

    Args:
        dim: channels.
        ndim: spatial axes.
        mlp_ratio: hidden channels of the MLP, as a multiple of ``dim``.
    """

    def __init__(self, dim: int, ndim: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        convolution, hidden = CONVOLUTIONS[ndim], mlp_ratio * dim
        self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
        self.mixer = convolution(dim, dim, 3, padding=1, groups=dim)
        self.mlp = nn.Sequential(convolution(dim, hidden, 1), nn.GELU(), convolution(hidden, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, *grid) to the same."""
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Stages of blocks, and a strided convolution between two of them.

    Args:
        dims: channels of each stage.
        merges: stride per axis from each stage to the next.
        depth: blocks of a stage.
    """

    def __init__(self, dims: Sequence[int], merges: Sequence[tuple[int, ...]], depth: int) -> None:
        super().__init__()
        ndim = len(merges[0])
        self.downsamples = nn.ModuleList(
            CONVOLUTIONS[ndim](dim, out, step, step) for dim, out, step in zip(dims, dims[1:], merges, strict=False)
        )
        self.stages = nn.ModuleList(nn.Sequential(*(Block(dim, ndim) for _ in range(depth))) for dim in dims)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, dims[0], *grid) to the feature map of each stage, finest first."""
        features = [self.stages[0](x)]
        for downsample, stage in zip(self.downsamples, self.stages[1:], strict=True):
            features.append(stage(downsample(features[-1])))
        return features


class Decoder(nn.Module):
    """Levels of a transposed convolution and the skip; heads, full resolution first.

    Args:
        dims: channels of each stage.
        steps: stride per axis of the stem and of each merge.
        num_classes: channels of the logits.
        num_heads: heads to build, of which only the first is used without deep supervision.
        deep_supervision: return the logits of all heads.
    """

    def __init__(
        self,
        dims: Sequence[int],
        steps: Sequence[tuple[int, ...]],
        num_classes: int,
        num_heads: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        ndim, outs, skips = len(steps[0]), (dims[0], *dims[:-1]), (0, *dims[:-1])
        self.ups = nn.ModuleList(
            TRANSPOSED[ndim](dim, out, step, step) for dim, out, step in zip(dims, outs, steps, strict=True)
        )
        self.levels = nn.ModuleList(
            ConvNormAct(out + skip, out, 3, (1,) * ndim) for out, skip in zip(outs, skips, strict=True)
        )
        self.seg_layers = nn.ModuleList(CONVOLUTIONS[ndim](out, num_classes, 1) for out in outs[:num_heads])

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map features, finest first, to logits (a list of them under deep supervision)."""
        x = features[-1]
        maps: list[Tensor] = []
        for up, level, skip in zip(self.ups[::-1], self.levels[::-1], (*features[-2::-1], None), strict=True):
            x = up(x)
            x = level(x if skip is None else torch.cat([x, skip], dim=1))
            maps.insert(0, x)
        if not self.deep_supervision:
            return self.seg_layers[0](x)
        return [head(features) for head, features in zip(self.seg_layers, maps, strict=True)]


class MyNetwork(SegmentationNetwork):
    """A U-Net of blocks in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis; the network takes images of exactly this size.
        patch_embed_stride: stride of the finest map, one integer or one per axis.
        num_stages: resolutions of the encoder, at least 2.
        merge_strides: down-sampling between the stages, one integer or one entry per stage but the last.
        dim: channels of the first stage, which double with each stage up to eight times as many.
        depth: blocks of a stage.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: if the total stride does not divide the patch.
    """

    stem_channels_last = False
    token_arguments = ("patch_embed_stride", "num_stages", "merge_strides")
    keys_to_in_proj = ("stem.conv",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        patch_embed_stride: PerAxis = 2,
        num_stages: int = 4,
        merge_strides: int | Sequence[PerAxis] = 2,
        dim: int = 16,
        depth: int = 2,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        merges = per_stage(merge_strides, num_stages - 1, ndim, "merge_strides")
        steps = [per_axis(patch_embed_stride, ndim, "patch_embed_stride"), *merges]
        dims = [dim * min(2**stage, 8) for stage in range(num_stages)]
        self.strides = [[1] * ndim, *map(list, steps)]
        check_strides(strides, self.strides)
        self.grid_sizes, self.feature_channels = token_grids(self.patch_size, steps), dims
        self.stem = ConvNormAct(input_channels, dim, 3, steps[0])
        self.encoder = Encoder(dims, merges, depth)
        heads = num_stages if (deep_supervision if auxiliary_heads is None else auxiliary_heads) else 1
        self.decoder = Decoder(dims, steps, num_classes, heads, deep_supervision)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of all stages, finest first."""
        self.check_input(image)
        return self.encoder(self.stem(image))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size)."""
        return self.decoder(self.encode(image))


# a second size is a second line, with another name and other arguments, and an entry in pyproject.toml
register_network("my_network", MyNetwork)
