"""ResUnet, the CNN that UniMiSS is compared with, in 2D and 3D.

Xie et al., "UniMiSS", ECCV 2022, appendix, section 3.2 and figure 2: ResNet-50 as encoder, four levels of a transposed
convolution, the sum with the encoder's map and a convolution, then an up-sampling and a 1x1 convolution of 32 channels.
Convolutions have batch norm and ReLU in 2D, instance norm and leaky ReLU in 3D. The text has no other numbers: the
levels have the channels of the maps that they are added to, so that the stem has 32; the first stage has a stride of 2
in place of ResNet's pooling; the stem keeps the depth, as MiT's does. Additions: heads for deep supervision, other
strides for anisotropic data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import PerAxis, check_strides, per_axis, per_stage, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network
from .layers import patch_transpose

STEM_DIM, EXPANSION = 32, 4


def conv_block(dim: int, out_dim: int, kernel_size: int, stride: Sequence[int], activation: bool = True) -> nn.Module:
    """Build convolution, norm and activation: batch norm and ReLU in 2D, instance norm and leaky ReLU in 3D."""
    convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(stride)]
    layers: list[nn.Module] = [convolution(dim, out_dim, kernel_size, stride, kernel_size // 2, bias=False)]
    if len(stride) == 2:
        layers += [nn.BatchNorm2d(out_dim), nn.ReLU()]
    else:
        layers += [nn.InstanceNorm3d(out_dim, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers[: 3 if activation else 2])


class Bottleneck(nn.Module):
    """ResNet's block of three convolutions (https://arxiv.org/abs/1512.03385), the stride in the middle one."""

    def __init__(self, dim: int, width: int, stride: Sequence[int]) -> None:
        super().__init__()
        ones, out_dim = (1,) * len(stride), EXPANSION * width
        self.convolutions = nn.Sequential(
            conv_block(dim, width, 1, ones),
            conv_block(width, width, 3, stride),
            conv_block(width, out_dim, 1, ones, activation=False),
        )
        is_same = dim == out_dim and max(stride) == 1
        self.shortcut = nn.Identity() if is_same else conv_block(dim, out_dim, 1, stride, activation=False)
        self.act = nn.ReLU() if len(stride) == 2 else nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, *size) to (batch, 4 * width, *size / stride)."""
        return self.act(self.convolutions(x) + self.shortcut(x))


class ResNetEncoder(nn.Module):
    """ResNet's stages of bottleneck blocks; the first block of each has the stride."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], strides: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        stages, dim = [], STEM_DIM
        for width, depth, stride in zip(widths, depths, strides, strict=True):
            steps = [stride] + [(1,) * len(stride)] * (depth - 1)
            dims = [dim] + [EXPANSION * width] * (depth - 1)
            stages.append(nn.Sequential(*(Bottleneck(d, width, s) for d, s in zip(dims, steps, strict=True))))
            dim = EXPANSION * width
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, 32, *grid) to the feature map of each stage, finest first."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ResUnetDecoder(nn.Module):
    """Levels that raise the resolution, add the skip and convolve; heads, full resolution first."""

    def __init__(
        self,
        dims: Sequence[int],
        steps: Sequence[tuple[int, ...]],
        num_classes: int,
        num_heads: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision, self.last_step = deep_supervision, steps[0]
        ones = (1,) * len(steps[0])
        self.ups = nn.ModuleList(
            patch_transpose(d, o, step, channels_last=False)
            for d, o, step in zip(dims[1:], dims[:-1], steps[1:], strict=True)
        )
        self.convolutions = nn.ModuleList(conv_block(d, d, 3, ones) for d in dims[:-1])
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(ones)]
        # that of the full resolution sees the same map as that of the stem's
        self.seg_layers = nn.ModuleList(convolution(d, num_classes, 1) for d in (dims[0], *dims[:-1])[:num_heads])

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map features, finest first, to logits (a list of them under deep supervision)."""
        x = features[-1]
        maps: list[Tensor] = []
        for up, convolution, skip in zip(self.ups[::-1], self.convolutions[::-1], features[-2::-1], strict=True):
            x = convolution(up(x) + skip)
            maps.insert(0, x)
        # a 1x1 convolution and an interpolation commute: classify at the lower resolution
        logits = self.seg_layers[0](x)
        size = [n * s for n, s in zip(logits.shape[2:], self.last_step, strict=True)]
        logits = F.interpolate(logits, size, mode={2: "bilinear", 3: "trilinear"}[len(size)])
        if not self.deep_supervision:
            return logits
        return [logits, *(head(m) for head, m in zip(self.seg_layers[1:], maps, strict=True))]


class ResUnet(SegmentationNetwork):
    """ResUnet in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis; the network takes images of exactly this size.
        patch_embed_stride: stride of the stem, one integer or one per axis.
        merge_strides: strides of the stages, one integer or one entry per stage.
        widths, depths: channels of the blocks' middle convolution and number of blocks in each stage.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: if the total stride does not divide the patch.

    Examples:
        >>> import torch
        >>> network = ResUnet(input_channels=1, num_classes=3, patch_size=(64, 64), depths=(1, 1, 1, 1))
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    stem_channels_last = False
    token_arguments = ("patch_embed_stride", "merge_strides")
    keys_to_in_proj = ("stem.0",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        patch_embed_stride: PerAxis = 2,
        merge_strides: int | Sequence[PerAxis] = 2,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        merges = per_stage(merge_strides, len(widths), ndim, "merge_strides")
        steps = [per_axis(patch_embed_stride, ndim, "patch_embed_stride"), *merges]
        self.strides = [[1] * ndim, *map(list, steps)]
        check_strides(strides, self.strides)
        dims = [STEM_DIM, *(EXPANSION * w for w in widths)]
        self.grid_sizes, self.feature_channels = token_grids(self.patch_size, steps), dims
        self.stem = conv_block(input_channels, STEM_DIM, 7, steps[0])
        self.encoder = ResNetEncoder(widths, depths, merges)
        heads = len(dims) if (deep_supervision if auxiliary_heads is None else auxiliary_heads) else 1
        self.decoder = ResUnetDecoder(dims, steps, num_classes, heads, deep_supervision)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stem and of all stages, finest first."""
        self.check_input(image)
        x = self.stem(image)
        return [x, *self.encoder(x)]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size)."""
        return self.decoder(self.encode(image))


register_network("resunet_50", ResUnet, arguments_3d={"patch_embed_stride": (1, 2, 2)})
