"""Image classifier: an encoder, pooled features and one linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..architectures import TOKEN_PREFIX, SegmentationNetwork, create_backbone, get_network, is_registered
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
    """Arguments that build a backbone, plain types.

    Attributes:
        name: name of a registered network or a timm network.
        patch_size: voxels per axis.
        input_channels: image channels.
        overrides: arguments of a registered network.
        has_token: whether the features include the pretrained class token, as in UniMiSS's MiT.
    """

    name: str
    patch_size: tuple[int, ...]
    input_channels: int
    overrides: dict[str, Any] = field(default_factory=dict)
    has_token: bool = False

    def build(self) -> nn.Module:
        """Build the backbone, (batch, input_channels, *patch_size) to (batch, dim), with random weights.

        A registered network averages its deepest feature map; with a token it returns the features of its own
        classifier. A timm network pools as timm defines it.

        Raises:
            ValueError: if there is no such network, or it does not take these arguments.
        """
        if not is_registered(self.name):
            return create_timm(self.name, self.input_channels, self.patch_size)
        return create_backbone(self.name, self.input_channels, self.patch_size, self.has_token, **self.overrides)


class ImageClassifier(nn.Module):
    """Backbone and one linear layer.

    Args:
        backbone: network with ``head_hidden_size``, as ``BackboneDescription.build`` returns it: (batch, channels,
            *patch_size) to (batch, head_hidden_size).
        num_classes: number of outputs.
        is_frozen: freeze the backbone, whose batch norm and dropout then stay in evaluation mode.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, is_frozen: bool = False) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False) if is_frozen else backbone
        self.head = nn.Linear(cast(int, backbone.head_hidden_size), num_classes)
        self.is_frozen = is_frozen
        self.train()

    def reset_head(self, num_classes: int) -> None:
        """Replace the linear layer by a new one, unless it has ``num_classes`` outputs already."""
        if self.head.out_features != num_classes:
            self.head = nn.Linear(self.head.in_features, num_classes)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Compute raw logits (batch, num_classes) of images (batch, channels, *patch_size)."""
        return self.head(self.backbone(image))


def mean_probabilities(network: nn.Module, crops: Iterable[Tensor], multi_label: bool, batch_size: int) -> Tensor:
    """Compute the class probabilities of an image, the mean over its crops.

    Args:
        network: classifier that returns logits, (batch, classes).
        crops: at least one, each (channels, *patch_size) on the network's device.
        multi_label: apply a sigmoid rather than a softmax.
        batch_size: crops per batch.

    Returns:
        (classes,).
    """
    summed, number, remaining = torch.zeros(()), 0, iter(crops)
    while batch := list(islice(remaining, batch_size)):
        logits = network(torch.stack(batch)).float()
        summed = summed + (logits.sigmoid() if multi_label else logits.softmax(1)).sum(0)
        number += len(batch)
    return summed / number


def load_pretrained(path: Path) -> EncoderCheckpoint | TimmCheckpoint:
    """Read an encoder checkpoint of a registered network or of a timm network.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, altered, or of another kind.
    """
    return load(path, (EncoderCheckpoint, TimmCheckpoint))


def has_own_classifier(name: str) -> bool:
    """Tell whether a name is that of a registered network with a classifier of its own, which uses a class token."""
    return is_registered(name) and get_network(name).network_class.classifier_class is not None


def pretrained_backbone(
    checkpoint: EncoderCheckpoint | TimmCheckpoint, patch_size: Sequence[int] | None = None
) -> tuple[nn.Module, BackboneDescription, str]:
    """Build a backbone with the weights of a checkpoint.

    Args:
        checkpoint: encoder checkpoint.
        patch_size: voxels per axis; the checkpoint's by default. Weights that depend on it are interpolated.

    Returns:
        the backbone, its description, and the load report as text.

    Raises:
        ValueError: if the patch has another number of axes than the checkpoint's, or does not suit the network.
    """
    size = tuple(patch_size or checkpoint.patch_size)
    if len(size) != len(checkpoint.patch_size):
        raise ValueError(
            f"patch_size {size} has {len(size)} axes, the encoder's patches {tuple(checkpoint.patch_size)} have "
            f"{len(checkpoint.patch_size)}"
        )
    if isinstance(checkpoint, TimmCheckpoint):
        network: Any = checkpoint.build_network()
        if size != tuple(checkpoint.patch_size) and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=size)
        description = BackboneDescription(checkpoint.name, size, checkpoint.input_channels)
        return network, description, f"weights from {checkpoint.method} of timm's {checkpoint.name}"
    origin = checkpoint.build_network()  # without memory, so that no forged description takes any below
    arguments = (checkpoint.name, size, checkpoint.input_channels, dict(checkpoint.overrides))
    if not any(name.startswith(TOKEN_PREFIX) for name in checkpoint.weights):
        description = BackboneDescription(*arguments)
        pooled = description.build()
        return pooled, description, str(load_encoder_weights(cast(SegmentationNetwork, pooled.encoder), checkpoint))
    description = BackboneDescription(*arguments, has_token=True)
    network = description.build()
    weights = {name.removeprefix(TOKEN_PREFIX): value for name, value in checkpoint.weights.items()}
    adapters = encoder_adapters(network, origin)
    return network, description, str(transfer(network.state_dict(), weights, adapters, checkpoint.origin))
