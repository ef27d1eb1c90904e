"""ImageNet weights of timm's ConvNeXt and Swin for UNet-2022, whose blocks are made of theirs.

The paper starts its encoder from them (section 4.7, table 7: 86.46 against 84.87 Dice without); the released code
copies the same ConvNeXt blocks into the decoder stages of equal width, and so does this.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import convnext as timm_convnext
from timm.models import swin_transformer as timm_swin
from torch import Tensor

from ..architectures.unet2022 import UNet2022
from .adapters import bias_tables, depthwise_kernels, pointwise_convolutions
from .file import load_state_dict
from .load_report import LoadReport
from .transfer import transfer

HUB = "hub"


@dataclass(frozen=True)
class _Model:
    """One of timm's families and its place in UNet-2022.

    Attributes:
        title: of the family.
        names: timm's model by the channels of its first stage.
        checkpoint_filter: timm's, from other libraries' names to its own.
        stages: name of its list of stages.
        part: of a UNet-2022's block that is made as its blocks.
        renamed: parts of a block's names, timm's to ours.
    """

    title: str
    names: Mapping[int, str]
    checkpoint_filter: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    stages: str
    part: str
    renamed: Mapping[str, str]


CONVNEXT = _Model(
    "ConvNeXt",
    # those below 96 channels suit the 3D networks
    {48: "convnext_femto", 64: "convnext_pico", 96: "convnext_tiny", 128: "convnext_base", 192: "convnext_large"},
    timm_convnext.checkpoint_filter_fn,
    "stages",
    "convnext",
    {},
)
SWIN = _Model(
    "Swin",
    {96: "swin_tiny_patch4_window7_224", 128: "swin_base_patch4_window7_224", 192: "swin_large_patch4_window7_224"},
    timm_swin.checkpoint_filter_fn,
    "layers",
    "parallel",
    {"norm1.": "norm.", "relative_position_bias_table": "bias.table"},
)


class ImageNetWeights:
    """ImageNet weights for any number of UNet-2022s; files are read once.

    Args:
        convnext: "hub" for timm's download of the ConvNeXt of the network's width, or a file: safetensors, or a
            checkpoint in timm's or the authors' format.
        swin: the same for the attention half; None leaves it at its initialisation.
        spread: where a stage of the source has more blocks than the network's, take blocks spread over it rather than
            the first ones.
    """

    def __init__(
        self, convnext: str | os.PathLike = HUB, swin: str | os.PathLike | None = None, spread: bool = False
    ) -> None:
        self.sources = [(CONVNEXT, convnext)] if swin is None else [(CONVNEXT, convnext), (SWIN, swin)]
        self.spread = spread
        self._read = cache(load_state_dict)

    def load_into(self, network: UNet2022) -> LoadReport:
        """Start a network, in place; arguments and errors as ``load_imagenet``."""
        width = network.feature_channels[0]
        weights: dict[str, Tensor] = {}
        origins = []
        for model, source in self.sources:
            weights |= _renamed(self._weights(model, source, width), network, model, self.spread)
            origins.append(f"{model.title} ({model.names[width]}, {source})")

        def table_shape(_: str, value: Tensor) -> tuple[int, int]:
            return (isqrt(len(value)),) * 2  # Swin's windows are square

        adapters = (bias_tables(network, table_shape), pointwise_convolutions, depthwise_kernels("conv_dw.weight"))
        return transfer(dict(network.named_parameters()), weights, adapters, " and ".join(origins))

    def _weights(self, model: _Model, source: str | os.PathLike, width: int) -> dict[str, Tensor]:
        """Weights of a model by timm's names."""
        if width not in model.names:
            known = ", ".join(f"{channels} ({name})" for channels, name in model.names.items())
            raise ValueError(f"no {model.title} with {width} channels in its first stage; there are {known}")
        name = model.names[width]
        if source == HUB:
            try:
                return timm.create_model(name, pretrained=True).state_dict()
            except Exception as error:  # whatever the hub's client raises without a connection
                raise ValueError(
                    f"cannot download {name}: {error}. Download it where there is a connection and give the file"
                ) from error
        with torch.device("meta"):
            expected_model = timm.create_model(name, num_classes=0)
        weights = self._read(Path(source))
        try:
            weights = model.checkpoint_filter(dict(weights), expected_model)
        except (KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{source} holds no weights of {name}: {error}") from error
        expected = expected_model.state_dict()
        right = [key for key, value in expected.items() if key in weights and weights[key].shape == value.shape]
        if len(right) < len(expected) // 2:
            raise ValueError(
                f"{source} holds no weights of {name}: {len(right)} of its {len(expected)} tensors are there"
            )
        return weights


def load_imagenet(
    network: UNet2022, convnext: str | os.PathLike = HUB, swin: str | os.PathLike | None = None, spread: bool = False
) -> LoadReport:
    """Start a UNet-2022 from ImageNet weights, in place.

    In 3D, depth-wise kernels are cropped to the network's size in-plane, repeated along the depth and divided by it, so
    that an image that is constant along the depth is seen as in 2D.

    Args:
        network: in 2D or 3D.
        convnext, swin, spread: as ``ImageNetWeights`` takes them.

    Returns:
        what was loaded, what was not and why.

    Raises:
        ValueError: if timm has no model of the network's width, the file is not one of that model, or the hub
            cannot be reached.
        FileNotFoundError: if there is no such file.
    """
    return ImageNetWeights(convnext, swin, spread).load_into(network)


def _block_names(network: UNet2022, source: Mapping[str, Tensor], model: _Model, spread: bool) -> dict[str, str]:
    """Prefix of each part of the network's blocks to that of the source's block, decoder stages included."""
    names = {}
    levels = len(network.decoder.levels)
    for stage, blocks in enumerate(network.encoder.stages):
        start = f"{model.stages}.{stage}.blocks."
        available = len({name[len(start) :].split(".")[0] for name in source if name.startswith(start)})
        if not available:
            continue
        depth = len(list(blocks.children()))
        for index in range(depth):
            position = round(index * (available - 1) / max(1, depth - 1)) if spread else min(index, available - 1)
            names[f"encoder.stages.{stage}.{index}.{model.part}."] = f"{start}{position}."
            if stage < levels:
                names[f"decoder.levels.{levels - 1 - stage}.blocks.{index}.{model.part}."] = f"{start}{position}."
    return names


def _renamed(weights: Mapping[str, Tensor], network: UNet2022, model: _Model, spread: bool) -> dict[str, Tensor]:
    """Weights of a model by the network's names; those without a place there as "swin: patch_embed.proj.weight"."""
    parameters = {name for name, _ in network.named_parameters()}
    renamed, used = {}, set()
    for ours, theirs in _block_names(network, weights, model, spread).items():
        for name in (name for name in weights if name.startswith(theirs)):
            part = name.removeprefix(theirs)
            for old, new in model.renamed.items():
                part = part.replace(old, new)
            if ours + part in parameters:
                renamed[ours + part] = weights[name]
                used.add(name)
    return renamed | {f"{model.title.lower()}: {name}": value for name, value in weights.items() if name not in used}
