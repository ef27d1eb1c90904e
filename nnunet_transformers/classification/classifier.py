"""A network that classifies images: an encoder, its pooled features, one linear layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..architectures import MiTClassifier, SegmentationNetwork, get_network, list_networks
from ..architectures.mit.pair import TOKEN_PREFIX
from ..architectures.mit.segmentation import MiT
from ..architectures.mit.trunk import MiTTrunk
from ..pretraining.encoders.encoder import create_encoder
from ..pretraining.encoders.pair import Pooled
from ..weights import (
    EncoderCheckpoint,
    TimmCheckpoint,
    create_timm,
    encoder_adapters,
    load,
    load_encoder_weights,
    transfer,
)


@dataclass(frozen=True)
class BackboneDescription:
    """What a backbone is built from, plain types.

    Attributes:
        name: registered network, or one of timm's.
        patch_size: voxels per axis.
        input_channels: image channels.
        overrides: arguments of a registered network.
        has_token: of MiT: judge the token of pretraining as well, as UniMiSS does.
    """

    name: str
    patch_size: tuple[int, ...]
    input_channels: int
    overrides: dict[str, Any] = field(default_factory=dict)
    has_token: bool = False

    def build(self) -> nn.Module:
        """The backbone, (batch, input_channels, *patch_size) to (batch, dim), freshly initialised.

        A registered network's deepest feature map is averaged, of MiT with its token as ``MiTClassifier`` does; one of
        timm's pools as timm has it.

        Raises:
            ValueError: if there is no such network, or it cannot have these arguments.
        """
        if self.name not in list_networks():
            return create_timm(self.name, self.input_channels, self.patch_size)
        if not self.has_token:
            encoder = create_encoder(self.name, self.input_channels, self.patch_size, **self.overrides)
            return Pooled(encoder, self.input_channels)
        arguments = {**get_network(self.name).all_arguments(len(self.patch_size)), **self.overrides}
        # what is for the decoder, or said apart, is none of the trunk's
        known = inspect.signature(MiTTrunk).parameters.keys() - {"input_channels", "patch_size", "ssl_token"}
        arguments = {name: arguments[name] for name in known if arguments.get(name) is not None}
        network = MiTClassifier(self.input_channels, 1, self.patch_size, **arguments)
        network.head = nn.Identity()
        return network


class ImageClassifier(nn.Module):
    """A backbone and one linear layer.

    Args:
        backbone: (batch, channels, *patch_size) to (batch, dim).
        num_classes: outputs.
        is_frozen: train the linear layer alone; the backbone stays as it is used, its batch norm and dropout too.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, is_frozen: bool = False) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False) if is_frozen else backbone
        self.head = nn.Linear(feature_dim(backbone), num_classes)
        self.is_frozen = is_frozen
        self.train()

    def reset_head(self, num_classes: int) -> None:
        """A fresh linear layer, if the one that is there has another number of outputs."""
        if self.head.out_features != num_classes:
            self.head = nn.Linear(self.head.in_features, num_classes)

    def train(self, mode: bool = True) -> ImageClassifier:
        """As of any module, but a frozen backbone stays as it is used."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, *patch_size) to raw logits (batch, num_classes)."""
        return self.head(self.backbone(image))


def mean_probabilities(network: nn.Module, parts: Iterable[Tensor], multi_label: bool, batch_size: int) -> Tensor:
    """Probabilities of an image, the mean over its parts.

    Args:
        network: to logits, (batch, classes).
        parts: each (channels, *patch_size), on the network's device.
        multi_label: sigmoid rather than softmax.
        batch_size: parts at a time.

    Returns:
        (classes,).
    """
    summed, number, parts = 0, 0, iter(parts)
    while chunk := list(islice(parts, batch_size)):
        logits = network(torch.stack(chunk)).float()
        summed = summed + (logits.sigmoid() if multi_label else logits.softmax(1)).sum(0)
        number += len(chunk)
    return summed / number


def feature_dim(backbone: nn.Module) -> int:
    """Channels of what a backbone gives."""
    if isinstance(backbone, Pooled):
        return backbone.encoder.feature_channels[-1]
    if isinstance(backbone, MiTClassifier):
        return backbone.norm.normalized_shape[0]
    return backbone.head_hidden_size


def load_pretrained(path: Path) -> EncoderCheckpoint | TimmCheckpoint:
    """Read an encoder checkpoint, of this package's networks or of timm's.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, altered, or neither.
    """
    return load(path, (EncoderCheckpoint, TimmCheckpoint))


def is_mit(name: str) -> bool:
    """Whether a network is MiT, which UniMiSS classifies with a token."""
    return name in list_networks() and issubclass(get_network(name).network_class, MiT)


def pretrained_backbone(
    checkpoint: EncoderCheckpoint | TimmCheckpoint, patch_size: Sequence[int] | None = None
) -> tuple[nn.Module, BackboneDescription, str]:
    """Build a backbone with the weights of a checkpoint.

    Args:
        checkpoint: of pretraining.
        patch_size: voxels per axis; the checkpoint's by default. What depends on it is interpolated.

    Returns:
        the backbone, its description, and the load report, for people.

    Raises:
        ValueError: if the patch has other dimensions than the checkpoint's, or the network cannot take it.
    """
    size = tuple(patch_size or checkpoint.patch_size)
    if len(size) != len(checkpoint.patch_size):
        raise ValueError(f"the encoder is of patches {tuple(checkpoint.patch_size)}, patch_size {size} has other axes")
    if isinstance(checkpoint, TimmCheckpoint):
        network: Any = checkpoint.build_network()
        if size != tuple(checkpoint.patch_size) and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=size)
        description = BackboneDescription(checkpoint.name, size, checkpoint.input_channels)
        return network, description, f"weights from {checkpoint.method} of timm's {checkpoint.name}"
    arguments = (checkpoint.name, size, checkpoint.input_channels, dict(checkpoint.overrides))
    if not any(name.startswith(TOKEN_PREFIX) for name in checkpoint.weights):
        description = BackboneDescription(*arguments)
        pooled = description.build()
        return pooled, description, str(load_encoder_weights(cast(SegmentationNetwork, pooled.encoder), checkpoint))
    description = BackboneDescription(*arguments, has_token=True)
    network = description.build()
    weights = {name.removeprefix(TOKEN_PREFIX): value for name, value in checkpoint.weights.items()}
    adapters = encoder_adapters(network, checkpoint.build_network())
    return network, description, str(transfer(network.state_dict(), weights, adapters, checkpoint.origin))
