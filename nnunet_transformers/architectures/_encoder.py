"""Encoders of registered networks: with feature maps, as a backbone with one vector, and as a pair in 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._arguments import HEAD_ARGUMENTS, in_plane
from ._backbone import Backbone
from ._network import SegmentationNetwork
from ._pair import NetworkPair
from ._registry import create_network, get_network


def create_encoder(name: str, input_channels: int, patch_size: Sequence[int], **overrides: Any) -> SegmentationNetwork:
    """Build a network without its decoder, for training through its deepest feature map.

    Parameters that only finer maps depend on (norms of skip connections) are frozen, since DDP requires a gradient for
    every trained parameter.

    Args:
        name: one of ``list_networks()``.
        input_channels: image channels.
        patch_size: edge lengths in voxels.
        overrides: arguments of the network's class.

    Returns:
        the network; only ``encode`` works.

    Raises:
        ValueError: as ``create_network``.
    """

    def build() -> SegmentationNetwork:
        network = create_network(name, input_channels, 2, patch_size, **overrides)
        network.decoder = nn.Identity()
        return network

    network = build()
    with torch.device("meta"), torch.enable_grad():
        # eval mode: batch norm cannot train on one image whose map has one element
        twin = build().eval()
        deepest = twin.encode(torch.empty(1, input_channels, *patch_size))[-1]
        gradients = torch.autograd.grad(deepest.sum(), list(twin.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return network


class Pooled(Backbone):
    """Global average pooling of an encoder's deepest feature map.

    Args:
        encoder: made by ``create_encoder``.
        input_channels: image channels.
    """

    def __init__(self, encoder: SegmentationNetwork, input_channels: int) -> None:
        super().__init__(encoder.patch_size, input_channels, encoder.feature_channels[-1])
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to (batch, head_hidden_size)."""
        return self.encoder.encode(image)[-1].flatten(2).mean(2)


def create_backbone(
    name: str, input_channels: int, patch_size: Sequence[int], with_token: bool = False, **overrides: Any
) -> Backbone:
    """Build the backbone of an image classifier.

    Args:
        name: one of ``list_networks()``.
        input_channels: image channels.
        patch_size: edge lengths in voxels.
        with_token: build the network's own classifier (``SegmentationNetwork.classifier_class``), whose features
            include the SSL token of pretraining, instead of averaging the deepest feature map.
        overrides: arguments of the network's class.

    Raises:
        ValueError: as ``create_network``, and if ``with_token`` and the network has no classifier of its own.
    """
    if not with_token:
        return Pooled(create_encoder(name, input_channels, patch_size, **overrides), input_channels)
    entry = get_network(name)
    entry.check_overrides(overrides)
    if entry.network_class.classifier_class is None:
        raise ValueError(f"{name} has no SSL token to classify by; build its backbone with with_token=False")
    arguments = _without_heads({**entry.all_arguments(len(patch_size)), **overrides})
    return entry.network_class.classifier_class(input_channels, 0, patch_size, **arguments)


class EncoderPair(NetworkPair):
    """Encoders of any network in 2D and 3D that share layers, each with its deepest feature map averaged.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis.
        input_channels_2d, input_channels_3d: image channels.
        overrides: arguments of the 3D form; ``in_plane`` derives the 2D form's.
    """

    form_2d: Pooled
    form_3d: Pooled

    def __init__(
        self,
        network: str,
        patch_size_2d: Sequence[int],
        patch_size_3d: Sequence[int],
        input_channels_2d: int,
        input_channels_3d: int,
        overrides: Mapping[str, Any],
    ) -> None:
        form_2d = Pooled(
            create_encoder(network, input_channels_2d, patch_size_2d, **in_plane(overrides)), input_channels_2d
        )
        form_3d = Pooled(create_encoder(network, input_channels_3d, patch_size_3d, **overrides), input_channels_3d)
        super().__init__(form_2d, form_3d, form_2d.head_hidden_size)

    def form_weights(self, ndim: int) -> dict[str, Tensor]:
        """Weights of stem and encoder of one form, by the network's names; ``ndim`` is 2 or 3."""
        form = self.form_2d if ndim == 2 else self.form_3d
        return form.encoder.encoder_state_dict()


def form_overrides(network: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete arguments of a pair's forms, those with an entry per axis as in 3D: defaults and overrides."""
    arguments = {**get_network(network).all_arguments(3), **(overrides or {}), "strides": None}
    return {name: value for name, value in arguments.items() if value is not None}


def create_pair(
    network: str,
    patch_size_2d: Sequence[int],
    patch_size_3d: Sequence[int],
    input_channels_2d: int,
    input_channels_3d: int,
    overrides: Mapping[str, Any] | None = None,
) -> NetworkPair:
    """Build a 2D and a 3D network that share layers: the class's ``pair_class`` if it has one, else ``EncoderPair``.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis.
        input_channels_2d, input_channels_3d: image channels.
        overrides: arguments of the 3D form; the 2D form has the same, without the first axis of those with an entry
            per axis.

    Raises:
        ValueError: as ``create_network``, and if the network lacks one of the two forms, as do nnU-Net's own, which a
            plan describes in one.
    """
    entry = get_network(network)
    if entry.dimensions != (2, 3) or entry.network_class.stock is not None:
        raise ValueError(
            f"pretraining on images and volumes needs a network with a 2D and a 3D form; {network} has only one of them"
        )
    arguments = form_overrides(network, overrides)
    if entry.network_class.pair_class is None:
        return EncoderPair(network, patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, arguments)
    entry.check_overrides(overrides or {})
    return entry.network_class.pair_class(
        patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, **_without_heads(arguments)
    )


def _without_heads(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the arguments of segmentation heads, and those that are None, which leaves them to the class."""
    return {name: value for name, value in arguments.items() if name not in HEAD_ARGUMENTS and value is not None}
