"""A registered network without its decoder: its feature maps, their average, and 2D and 3D at once."""

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
    """Build a network whose ``encode`` works and of which everything is trained that its deepest feature map needs.

    The decoder is removed, and parameters that only the finer maps need (norms of the skip connections) are frozen: DDP
    wants a gradient for every parameter that is trained.

    Args:
        name: one of ``list_networks()``.
        input_channels: image channels.
        patch_size: edge lengths in voxels.
        overrides: arguments of the network's class.

    Raises:
        ValueError: as ``create_network``.
    """

    def build() -> SegmentationNetwork:
        network = create_network(name, input_channels, 2, patch_size, **overrides)
        network.decoder = nn.Identity()
        return network

    network = build()
    with torch.device("meta"), torch.enable_grad():
        # in evaluation, for batch norm cannot train on one image of one cell
        twin = build().eval()
        deepest = twin.encode(torch.empty(1, input_channels, *patch_size))[-1]
        gradients = torch.autograd.grad(deepest.sum(), list(twin.parameters()), allow_unused=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return network


class Pooled(Backbone):
    """The mean of an encoder's deepest feature map.

    Args:
        encoder: of ``create_encoder``.
        input_channels: image channels.
    """

    def __init__(self, encoder: SegmentationNetwork, input_channels: int) -> None:
        super().__init__(encoder.patch_size, input_channels, encoder.feature_channels[-1])
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """(batch, input_channels, *patch_size) to (batch, head_hidden_size)."""
        return self.encoder.encode(image)[-1].flatten(2).mean(2)


def create_backbone(
    name: str, input_channels: int, patch_size: Sequence[int], with_token: bool = False, **overrides: Any
) -> Backbone:
    """Build what a classifier of whole images puts its linear layer on.

    Args:
        name: one of ``list_networks()``.
        input_channels: image channels.
        patch_size: edge lengths in voxels.
        with_token: build the network's own classifier (``SegmentationNetwork.classifier_class``), whose features take
            in the token of pretraining, instead of averaging the deepest feature map.
        overrides: arguments of the network's class.

    Raises:
        ValueError: as ``create_network``, and on a network without a classifier of its own, if one is asked for.
    """
    if not with_token:
        return Pooled(create_encoder(name, input_channels, patch_size, **overrides), input_channels)
    entry = get_network(name)
    entry.check_overrides(overrides)
    if entry.network_class.classifier_class is None:
        raise ValueError(f"{name} has no token of pretraining to classify by; build its backbone without")
    arguments = _without_heads({**entry.all_arguments(len(patch_size)), **overrides})
    return entry.network_class.classifier_class(input_channels, 0, patch_size, **arguments)


class EncoderPair(NetworkPair):
    """The encoder of any network in 2D and 3D, its deepest feature map averaged.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis.
        input_channels_2d, input_channels_3d: image channels.
        overrides: arguments of the 3D form.
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
        """Stem and encoder of one form, by the names of the network."""
        form = self.form_2d if ndim == 2 else self.form_3d
        return form.encoder.encoder_state_dict()


def form_overrides(network: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments that both forms of a network have, those with an entry per axis as in 3D."""
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
    """Build a network in 2D and 3D that share weights: its own pair, if its class has one, else its encoder's.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis.
        input_channels_2d, input_channels_3d: image channels.
        overrides: arguments of the 3D form; the 2D form has the same, without the first axis of those with an entry
            per axis.

    Raises:
        ValueError: as ``create_network``, and if the network lacks one of the two forms.
    """
    entry = get_network(network)
    if entry.dimensions != (2, 3):
        raise ValueError(f"images and volumes together need a network with a 2D and a 3D form, and {network} has one")
    arguments = form_overrides(network, overrides)
    if entry.network_class.pair_class is None:
        return EncoderPair(network, patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, arguments)
    entry.check_overrides(overrides or {})
    return entry.network_class.pair_class(
        patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, **_without_heads(arguments)
    )


def _without_heads(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that remain without segmentation heads; None stands for the default."""
    return {name: value for name, value in arguments.items() if name not in HEAD_ARGUMENTS and value is not None}
