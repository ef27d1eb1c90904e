"""ImageNet weights of timm's ConvNeXt and Swin for UNet-2022, whose blocks combine theirs.

The paper initialises its encoder with them (section 4.7, table 7: Dice 86.46, without them 84.87). As in the released
code, the decoder stages of equal width take the same ConvNeXt blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import convnext as timm_convnext
from timm.models import swin_transformer as timm_swin
from torch import Tensor, nn

from .._meta import without_data
from ..architectures.unet2022 import UNet2022
from .adapters import bias_tables, depthwise_kernels, pointwise_convolutions
from .file import load_state_dict
from .heads import check_heads_of_tables
from .layout import strip_prefix
from .load_report import LoadReport
from .timm_encoder import tagged, timm_pretrained
from .transfer import transfer

HUB = "hub"


@dataclass(frozen=True)
class Family:
    """A timm family and its place in UNet-2022.

    Attributes:
        title: name of the family.
        names: timm's model by the channels of its first stage.
        checkpoint_filter: timm's function that translates other libraries' names to its own.
        stages: attribute that holds the stages of a timm model.
        part: attribute of a UNet-2022 block that corresponds to a block of the family.
        renamed: parts of parameter names in a block, timm's to UNet-2022's.
    """

    title: str
    names: Mapping[int, str]
    checkpoint_filter: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    stages: str
    part: str
    renamed: Mapping[str, str]


CONVNEXT = Family(
    "ConvNeXt",
    # widths below 96 are those of the 3D networks
    {48: "convnext_femto", 64: "convnext_pico", 96: "convnext_tiny", 128: "convnext_base", 192: "convnext_large"},
    timm_convnext.checkpoint_filter_fn,
    "stages",
    "convnext",
    {},
)
SWIN = Family(
    "Swin",
    {96: "swin_tiny_patch4_window7_224", 128: "swin_base_patch4_window7_224", 192: "swin_large_patch4_window7_224"},
    timm_swin.checkpoint_filter_fn,
    "layers",
    "parallel",
    {"norm1.": "norm.", "relative_position_bias_table": "bias.table"},
)


# for the network whose blocks are Swin's
SWIN_ALONE = replace(SWIN, part="swin", renamed={"relative_position_bias_table": "bias.table"})


class ImageNetWeights:
    """ImageNet weights for any number of UNet-2022 networks; files are read once.

    Args:
        convnext: "hub" to download timm's ConvNeXt of the network's width, or a file: safetensors, or a checkpoint in
            timm's or the authors' format.
        swin: the same for the attention branch; None keeps its initialisation.
        spread: if a stage of the source has more blocks than the network's, take blocks evenly spread over it rather
            than the first ones.
    """

    def __init__(
        self, convnext: str | os.PathLike[str] = HUB, swin: str | os.PathLike[str] | None = None, spread: bool = False
    ) -> None:
        self.sources = [(CONVNEXT, convnext)] if swin is None else [(CONVNEXT, convnext), (SWIN, swin)]
        self.spread = spread
        self._read = cache(load_state_dict)

    def load_into(self, network: UNet2022) -> LoadReport:
        """Load the weights into a network, in place; errors as ``load_imagenet``."""
        width = network.feature_channels[0]
        found = [
            (f, self._weights(f, source, width), f"{f.title} ({f.names[width]}, {source})")
            for f, source in self.sources
        ]
        return load_blocks(network, found, self.spread)

    def _weights(self, family: Family, source: str | os.PathLike[str], width: int) -> dict[str, Tensor]:
        """Read the weights of the family's model of a width, by timm's names."""
        if width not in family.names:
            known = ", ".join(f"{channels} ({name})" for channels, name in family.names.items())
            raise ValueError(f"no {family.title} with {width} channels in its first stage; there are {known}")
        name = family.names[width]
        if source == HUB:
            return dict(timm_pretrained(tagged(name)).state_dict())
        with without_data():
            expected_model = timm.create_model(name, num_classes=0)
        expected = expected_model.state_dict()
        weights, _ = strip_prefix(self._read(Path(source)), expected)
        try:
            weights = family.checkpoint_filter(dict(weights), expected_model)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{source} holds no weights of {name}: {error}") from error
        right = [key for key, value in expected.items() if key in weights and weights[key].shape == value.shape]
        if len(right) < len(expected) // 2:
            raise ValueError(f"{source} holds no weights of {name}: it has {len(right)} of the {len(expected)} tensors")
        return weights


def load_blocks(
    network: UNet2022, found: Sequence[tuple[Family, Mapping[str, Tensor], str]], spread: bool = False
) -> LoadReport:
    """Load the blocks of timm networks into a UNet-2022, in place.

    Args:
        network: 2D or 3D network.
        found: families, weights by timm's names, and their origin in words.
        spread: as ``ImageNetWeights`` takes it.

    Raises:
        ValueError: if the network has another number of attention heads.
    """
    weights: dict[str, Tensor] = {}
    for family, own, _ in found:
        if family is SWIN and network.block == "swin":
            family = SWIN_ALONE
        weights |= _renamed(own, network, family, spread)
    check_heads_of_tables(weights, network)

    def table_shape(_: str, value: Tensor) -> tuple[int, int]:
        return (isqrt(len(value)),) * 2  # Swin's windows are square

    adapters = (bias_tables(network, table_shape), pointwise_convolutions, depthwise_kernels("conv_dw.weight"))
    origin = " and ".join(origin for *_, origin in found)
    return transfer(dict(network.named_parameters()), weights, adapters, origin)


def load_imagenet(
    network: UNet2022,
    convnext: str | os.PathLike[str] = HUB,
    swin: str | os.PathLike[str] | None = None,
    spread: bool = False,
) -> LoadReport:
    """Load ImageNet weights into a UNet-2022, in place.

    In 3D, depth-wise kernels are cropped to the network's in-plane size, repeated along the depth and divided by its
    length, so that the response to an image that is constant along the depth is that in 2D.

    Args:
        network: 2D or 3D network.
        convnext, swin, spread: as ``ImageNetWeights`` takes them.

    Returns:
        the load report.

    Raises:
        ValueError: if timm has no model of the network's width, the file holds another model, or the hub cannot be
            reached.
        FileNotFoundError: if there is no such file.
    """
    return ImageNetWeights(convnext, swin, spread).load_into(network)


def _block_names(network: UNet2022, source: Mapping[str, Tensor], family: Family, spread: bool) -> dict[str, str]:
    """Map the name prefix of each block's part, in encoder and decoder, to the prefix of the source's block."""
    names = {}
    levels = len(cast(nn.ModuleList, network.decoder.levels))
    for stage, blocks in enumerate(cast(nn.ModuleList, network.encoder.stages)):
        start = f"{family.stages}.{stage}.blocks."
        available = len({name[len(start) :].split(".")[0] for name in source if name.startswith(start)})
        if not available:
            continue
        depth = len(list(blocks.children()))
        for index in range(depth):
            position = round(index * (available - 1) / max(1, depth - 1)) if spread else min(index, available - 1)
            names[f"encoder.stages.{stage}.{index}.{family.part}."] = f"{start}{position}."
            if stage < levels:
                names[f"decoder.levels.{levels - 1 - stage}.blocks.{index}.{family.part}."] = f"{start}{position}."
    return names


def _renamed(weights: Mapping[str, Tensor], network: UNet2022, family: Family, spread: bool) -> dict[str, Tensor]:
    """Rename timm's weights to the network's names; unused ones become "swin: patch_embed.proj.weight"."""
    parameters = {name for name, _ in network.named_parameters()}
    renamed, used = {}, set()
    for ours, theirs in _block_names(network, weights, family, spread).items():
        for name in (name for name in weights if name.startswith(theirs)):
            part = name.removeprefix(theirs)
            for old, new in family.renamed.items():
                part = part.replace(old, new)
            if ours + part in parameters:
                renamed[ours + part] = weights[name]
                used.add(name)
    return renamed | {f"{family.title.lower()}: {name}": value for name, value in weights.items() if name not in used}
