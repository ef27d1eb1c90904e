"""MedNeXt, a U-Net of ConvNeXt blocks that also resample, in 2D and 3D.

Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation", MICCAI 2023: the block of
section 2.1, its resampling forms of 2.2, ``upkern`` of 2.3, the sizes of table 1. The published networks halve every
axis four times; here the strides can differ between axes, and stages can be fewer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import PerAxis, check_depth, check_strides, per_stage, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network
from .layers import recomputed

CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
# one group per channel, as the paper's group norm has, is instance norm
NORMS: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class MedNeXtBlock(nn.Module):
    """Depth-wise convolution, norm, expansion, GELU and compression, summed with the input.

    Args:
        dim: channels.
        expansion: factor of the channels between expansion and compression.
        kernel_size: edge of the depth-wise kernel, odd.
        ndim: spatial axes.
        activation_checkpointing: recompute the block in the backward pass.
    """

    def __init__(
        self, dim: int, expansion: int, kernel_size: int, ndim: int, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[ndim]
        self.depthwise = convolution(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = NORMS[ndim](dim, affine=True)
        self.expand = convolution(dim, expansion * dim, 1)
        self.compress = convolution(expansion * dim, dim, 1)
        self.shortcut: nn.Module = nn.Identity()
        self.activation_checkpointing = activation_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, *size) to the same shape; to others in subclasses."""
        return recomputed(self._forward, x, active=self.activation_checkpointing and self.training)

    def _forward(self, x: Tensor) -> Tensor:
        return self.compress(F.gelu(self.expand(self.norm(self.depthwise(x))))) + self.shortcut(x)


class DownBlock(MedNeXtBlock):
    """The block with a stride in its depth-wise convolution and in the convolution of its shortcut.

    Args:
        dim, out_dim: channels before and after.
        stride: per axis, 1 or 2.
        others: arguments of ``MedNeXtBlock``.
    """

    def __init__(self, dim: int, out_dim: int, stride: Sequence[int], **others: Any) -> None:
        super().__init__(dim, ndim=len(stride), **others)
        self._resample(CONVOLUTIONS[len(stride)], out_dim, tuple(stride))

    def _resample(self, convolution: Any, out_dim: int, stride: tuple[int, ...]) -> None:
        before = self.depthwise
        dim, kernel_size = before.in_channels, before.kernel_size[0]
        self.depthwise = convolution(dim, dim, kernel_size, stride, kernel_size // 2, groups=dim)
        self.compress = CONVOLUTIONS[len(stride)](self.compress.in_channels, out_dim, 1)
        self.shortcut = convolution(dim, out_dim, 1, stride)


class UpBlock(DownBlock):
    """The block with transposed convolutions, whose result lacks an element where it is doubled: a zero at the start.

    Arguments are those of ``DownBlock``.
    """

    def __init__(self, dim: int, out_dim: int, stride: Sequence[int], **others: Any) -> None:
        super().__init__(dim, out_dim, stride, **others)
        self._resample(TRANSPOSED[len(stride)], out_dim, tuple(stride))
        self.padding = [n for s in reversed(stride) for n in (s - 1, 0)]

    def _forward(self, x: Tensor) -> Tensor:
        return F.pad(super()._forward(x), self.padding)


class MedNeXtEncoder(nn.Module):
    """Stages of blocks, each but the last followed by a block that lowers the resolution and doubles the channels."""

    def __init__(self, stages: Sequence[nn.Module], downsamples: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages, self.downsamples = nn.ModuleList(stages), nn.ModuleList(downsamples)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, width, *patch_size) to the feature map of each stage, finest first."""
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.downsamples[index - 1](x))
            features.append(x)
        return features


class MedNeXtDecoder(nn.Module):
    """Levels, deepest first: a block that raises the resolution, the sum with the skip, blocks; and the heads."""

    def __init__(
        self,
        upsamples: Sequence[nn.Module],
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.upsamples, self.stages = nn.ModuleList(upsamples), nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map features, finest first, to logits (a list of them under deep supervision)."""
        x = features[-1]
        maps: list[Tensor] = []
        for up, stage, skip in zip(self.upsamples, self.stages, features[-2::-1], strict=True):
            x = stage(up(x) + skip)
            maps.insert(0, x)
        if not self.deep_supervision:
            return self.seg_layers[0](x)
        return [head(m) for head, m in zip(self.seg_layers, maps, strict=True)]


class MedNeXt(SegmentationNetwork):
    """MedNeXt in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis; the network takes images of exactly this size.
        width: channels at full resolution, doubled at each stage.
        kernel_size: edge of the depth-wise kernels, odd: 3 or 5 as published.
        num_stages: resolutions, the bottleneck included.
        merge_strides: strides between the stages, 1 or 2, one integer or one entry per stage but the last.
        depths, expansions: blocks of each encoder stage and the expansion of their channels; the decoder mirrors them.
            With fewer stages the first entries are used, with more the last is repeated.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, more time.
        deep_supervision: return a list of logits, full resolution first; the published network has one more output,
            of the bottleneck, to which nnU-Net's loss gives no weight.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: if the total stride does not divide the patch, or arguments are impossible.

    Examples:
        >>> import torch
        >>> network = MedNeXt(input_channels=1, num_classes=3, patch_size=(32, 32), width=8)
        >>> network(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """

    stem_channels_last = False
    token_arguments = ("num_stages", "merge_strides")

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        width: int = 32,
        kernel_size: int = 3,
        num_stages: int = 5,
        merge_strides: int | Sequence[PerAxis] = 2,
        depths: Sequence[int] = (2, 2, 2, 2, 2),
        expansions: Sequence[int] = (2, 2, 2, 2, 2),
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        if num_stages < 3 or kernel_size % 2 == 0:
            raise ValueError(f"num_stages must be at least 3 and kernel_size odd, got {num_stages} and {kernel_size}")
        steps = per_stage(merge_strides, num_stages - 1, ndim, "merge_strides")
        if max(map(max, steps)) > 2:
            raise ValueError(f"merge_strides must be 1 or 2, got {merge_strides}")
        self.strides = [[1] * ndim, *map(list, steps)]
        check_strides(strides, self.strides)
        depths, expansions = (_stretched(values, num_stages) for values in (depths, expansions))
        check_depth(depths, "depths")
        self.resolved_arguments = {"depths": depths, "expansions": expansions}
        dims = [width * 2**i for i in range(num_stages)]
        self.grid_sizes = token_grids(self.patch_size, [(1,) * ndim, *steps])
        self.feature_channels = dims

        def options(index: int) -> dict[str, Any]:
            return {
                "expansion": expansions[index],
                "kernel_size": kernel_size,
                "activation_checkpointing": activation_checkpointing,
            }

        def stage(index: int) -> nn.Module:
            blocks = (MedNeXtBlock(dims[index], ndim=ndim, **options(index)) for _ in range(depths[index]))
            return nn.Sequential(*blocks)

        convolution = CONVOLUTIONS[ndim]
        self.stem = nn.Sequential(OrderedDict(proj=convolution(input_channels, width, 1)))
        self.encoder = MedNeXtEncoder(
            [stage(i) for i in range(num_stages)],
            [DownBlock(dims[i], dims[i + 1], steps[i], **options(i)) for i in range(num_stages - 1)],
        )
        levels = range(num_stages - 2, -1, -1)
        heads = dims[:-1] if (deep_supervision if auxiliary_heads is None else auxiliary_heads) else dims[:1]
        self.decoder = MedNeXtDecoder(
            [UpBlock(dims[i + 1], dims[i], steps[i], **options(i)) for i in levels],
            [stage(i) for i in levels],
            [convolution(dim, num_classes, 1) for dim in heads],
            deep_supervision,
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of all stages, at full resolution first."""
        self.check_input(image)
        return self.encoder(self.stem(image))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        return self.decoder(self.encode(image))


def _stretched(values: Sequence[int], count: int) -> tuple[int, ...]:
    """The first ``count`` values, the last of them repeated where there are fewer."""
    return (*values[:count], *[values[-1]] * (count - len(values)))


def upkern(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge a trained depth-wise kernel for a network with larger ones (section 2.3), linearly on each axis.

    Args:
        kernel: (channels, 1, *edges).
        size: the new edges.
    """
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(kernel.float(), size=tuple(size), mode=mode).to(kernel.dtype)


SIZES: dict[str, dict[str, Any]] = {
    "s": {},
    "b": {"expansions": (2, 3, 4, 4, 4)},
    "m": {"expansions": (2, 3, 4, 4, 4), "depths": (3, 4, 4, 4, 4)},
    "l": {"expansions": (3, 4, 8, 8, 8), "depths": (3, 4, 8, 8, 8)},
}
for size, own in SIZES.items():
    register_network(f"mednext_{size}", MedNeXt, **own)
    register_network(f"mednext_{size}_k5", MedNeXt, kernel_size=5, **own)
