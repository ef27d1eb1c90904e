"""nnU-Net's own CNNs, PlainConvUNet and ResidualEncoderUNet, behind the interface of networks, to pretrain encoders.

Isensee et al., "nnU-Net Revisited", MICCAI 2024, https://arxiv.org/abs/2404.09556. The modules are
dynamic-network-architectures' and keep their names, so that weights go into the networks that nnU-Net builds. Only
nnU-Net's planners describe such a network, so there is no published size: it is built from the arguments of a plan, and
``list_networks`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from ._arguments import check_depth, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network

# arguments that name classes of torch.nn
LAYERS = ("conv_op", "norm_op", "dropout_op", "nonlin")
# arguments with a number of layers for each stage, or one for all
DEPTHS = ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")


class StockUNet(SegmentationNetwork):
    """One of nnU-Net's CNNs, in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis, multiples of the total strides.
        architecture: entry ``arch_kwargs`` of a plan, in which layers are classes of torch.nn by name.
        deep_supervision: return a list of logits, full resolution first.

    Raises:
        ValueError: on a patch size that the strides do not divide, a layer that torch.nn does not have, and absurd
            numbers of layers.
        TypeError: if the arguments are not those of such a network.
    """

    stem_channels_last = False
    key_to_encoder = "encoder.stages"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        architecture: Mapping[str, Any],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__(patch_size)
        arguments = {**architecture, **{key: _layer(architecture.get(key)) for key in LAYERS}}
        check_depth((int(architecture["n_stages"]),), "n_stages")
        for name in DEPTHS:
            depths = architecture.get(name, ())
            check_depth(depths if isinstance(depths, Sequence) else (depths * architecture["n_stages"],), name)
        build: Any = self.stock
        network = build(
            input_channels=input_channels, num_classes=num_classes, deep_supervision=deep_supervision, **arguments
        )
        network.apply(network.initialize)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.strides = [list(stride) for stride in network.encoder.strides]
        self.grid_sizes = token_grids(self.patch_size, self.strides)
        self.feature_channels = list(network.encoder.output_channels)

    @property
    def stem(self) -> nn.Module:  # type: ignore[override]
        """The part of the encoder that sees the image, or its first stage."""
        return self.get_submodule(self.key_to_stem)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature maps of all stages, (batch, feature_channels[i], *grid_sizes[i]), the first at full resolution."""
        self.check_input(image)
        maps: list[Tensor] = self.encoder(image)
        return maps

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Raises:
            ValueError: on an image of another size.
        """
        logits: Tensor | list[Tensor] = self.decoder(self.encode(image))
        return logits


class StockPlainConvUNet(StockUNet):
    """``PlainConvUNet``, of nnU-Net's default planner; its stem is the first stage."""

    stock: ClassVar[type[nn.Module] | None] = PlainConvUNet
    key_to_stem = "encoder.stages.0"
    keys_to_in_proj = ("encoder.stages.0.0.convs.0.conv", "encoder.stages.0.0.convs.0.all_modules.0")


class StockResidualEncoderUNet(StockUNet):
    """``ResidualEncoderUNet``, of nnU-Net's planners ``nnUNetPlannerResEncM``, ``L`` and ``XL``."""

    stock: ClassVar[type[nn.Module] | None] = ResidualEncoderUNet
    key_to_stem = "encoder.stem"
    keys_to_in_proj = ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0")


def _layer(name: str | None) -> type[nn.Module] | None:
    """Look up a class of torch.nn by its import path, such as ``torch.nn.modules.conv.Conv3d``; imports nothing."""
    if name is None:
        return None
    found = getattr(nn, str(name).removeprefix("torch.nn.").rpartition(".")[2], None)
    if not str(name).startswith("torch.nn.") or not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"torch.nn has no layer {name!r}")
    return found


STOCK = (PlainConvUNet, ResidualEncoderUNet)
register_network("PlainConvUNet", StockPlainConvUNet)
register_network("ResidualEncoderUNet", StockResidualEncoderUNet)
