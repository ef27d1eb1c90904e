"""A 2D U-Net with timm's ResNet as its encoder: MGCA's network for segmentation with ResNet-50.

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning",
NeurIPS 2022, supplement B.3. The decoder follows segmentation_models.pytorch, which is named there.
dynamic_network_architectures' ``UNetDecoder`` does not fit: its levels have the channels of their skips and end at the
finest skip, half the image's resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import ResNet
from torch import Tensor, nn

from ._arguments import check_strides, one_per_stage, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network, register_timm_family
from .layers import ConvNormAct

STEM = ("conv1", "bn1", "act1")
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNetStem(nn.Module):
    """The strided convolution of timm's ResNet with its norm and activation."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        for name in STEM:
            self.add_module(name, getattr(resnet, name))

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *size) to (batch, dim, *size / 2)."""
        for name in STEM:
            image = self.get_submodule(name)(image)
        return image


class ResNetEncoder(nn.Module):
    """Pooling and the four stages of timm's ResNet."""

    def __init__(self, resnet: ResNet) -> None:
        super().__init__()
        for name in ("maxpool", *STAGES):
            self.add_module(name, getattr(resnet, name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, dim, *size) to the feature maps of the stages, finest first."""
        features, x = [], self.get_submodule("maxpool")(x)
        for name in STAGES:
            x = self.get_submodule(name)(x)
            features.append(x)
        return features


class UNetLevel(nn.Module):
    """Nearest up-sampling by 2, concatenation of the skip, two convolutions with instance norm and leaky ReLU."""

    def __init__(self, dim: int, skip_dim: int, out_dim: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ConvNormAct(dim + skip_dim, out_dim, 3, (1, 1)), ConvNormAct(out_dim, out_dim, 3, (1, 1))
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """Map (batch, dim, *size) and the skip (batch, skip_dim, *2 size) to (batch, out_dim, *2 size)."""
        x = F.interpolate(x, scale_factor=2)
        return self.blocks(x if skip is None else torch.cat([x, skip], dim=1))


class UNetDecoder(nn.Module):
    """The levels, deepest first, the last without a skip, and the heads, full resolution first.

    Args:
        feature_dims: channels of the encoder's maps, finest first.
        dims: channels of the levels, deepest first.
        num_classes: output channels.
        auxiliary_heads: build the heads of deep supervision.
        deep_supervision: return all outputs.
    """

    def __init__(
        self,
        feature_dims: Sequence[int],
        dims: Sequence[int],
        num_classes: int,
        auxiliary_heads: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        before, skips = [feature_dims[-1], *dims[:-1]], [*feature_dims[-2::-1], 0]
        self.levels = nn.ModuleList(UNetLevel(*level) for level in zip(before, skips, dims, strict=True))
        head_dims = dims[::-1] if auxiliary_heads else dims[-1:]
        self.seg_layers = nn.ModuleList(nn.Conv2d(d, num_classes, 3, padding=1) for d in head_dims)

    def forward(self, features: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Map the encoder's features, finest first, to logits (a list of them under deep supervision)."""
        x = features[-1]
        maps: list[Tensor] = []
        for level, skip in zip(self.levels, [*features[-2::-1], None], strict=True):
            x = level(x, skip)
            maps.insert(0, x)
        if not self.deep_supervision:
            return self.seg_layers[0](x)
        return [head(m) for head, m in zip(self.seg_layers, maps, strict=True)]


class ResNetUNet(SegmentationNetwork):
    """2D U-Net with timm's ResNet.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: height and width in pixels, multiples of 32.
        timm_name: name in timm of a ResNet whose stem is one convolution (resnet18, resnet50, resnext50_32x4d ...).
        decoder_dims: channels of the decoder's five levels, deepest first.
        drop_path_rate: stochastic depth rate of the last block.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: on a patch size that is not 2D or no multiple of 32, and on a timm network that is no such ResNet.

    Examples:
        >>> import torch
        >>> network = ResNetUNet(input_channels=1, num_classes=3, patch_size=(64, 64), timm_name="resnet18")
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    dimensions = (2,)
    stem_channels_last = False
    keys_to_in_proj = ("stem.conv1",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        timm_name: str = "resnet50",
        decoder_dims: Sequence[int] = (256, 128, 64, 32, 16),
        drop_path_rate: float = 0.0,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        steps = [[2, 2]] * (1 + len(STAGES))
        self.strides = [[1, 1], *steps]
        check_strides(strides, self.strides)
        self.grid_sizes = token_grids(self.patch_size, steps)
        resnet = (
            timm.create_model(timm_name, in_chans=input_channels, num_classes=0, drop_path_rate=drop_path_rate)
            if timm.is_model(timm_name)
            else None
        )
        if not isinstance(resnet, ResNet) or not isinstance(resnet.conv1, nn.Conv2d):
            raise ValueError(
                f"timm_name must be one of timm's ResNets whose stem is one convolution, such as resnet18, resnet50 or "
                f"resnext50_32x4d, got {timm_name!r}"
            )
        self.feature_channels = [int(str(info["num_chs"])) for info in resnet.feature_info]
        decoder_dims = one_per_stage(decoder_dims, len(steps), "decoder_dims")
        self.stem, self.encoder = ResNetStem(resnet), ResNetEncoder(resnet)
        if auxiliary_heads is None:
            auxiliary_heads = deep_supervision
        self.decoder = UNetDecoder(self.feature_channels, decoder_dims, num_classes, auxiliary_heads, deep_supervision)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem and each stage."""
        return {"stem": r"^stem\.", "blocks": r"^encoder\.layer(\d+)"}

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of the stem, at half the image's resolution, and of the four stages."""
        self.check_input(image)
        x = self.stem(image)
        return [x, *self.encoder(x)]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        return self.decoder(self.encode(image))


def timm_overrides(resnet: ResNet, name: str) -> dict[str, Any]:
    """Derive the arguments of the ``ResNetUNet`` with timm's ResNet as encoder; the constructor rejects other stems."""
    return {"timm_name": name}


def timm_filter_fn(state_dict: Mapping[str, Tensor], resnet: ResNet) -> dict[str, Tensor]:
    """Translate the weights of timm's ResNet, without a classifier, to those of stem and encoder."""
    return {f"{'stem' if k.split('.')[0] in STEM else 'encoder'}.{k}": v for k, v in state_dict.items()}


register_network("resnet18_unet", ResNetUNet, timm_name="resnet18")
register_network("resnet50_unet", ResNetUNet)
register_timm_family(ResNet, "resnet50_unet", "resnet50", timm_overrides, timm_filter_fn)
