"""What a cross-dimensional method trains: a registered network in 2D and 3D at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...architectures import MiTPair, NetworkPair, SegmentationNetwork, get_network
from ...architectures._arguments import in_plane
from ...architectures.mit.segmentation import MiT
from ...architectures.mit.trunk import MiTTrunk
from ...weights import encoder_weights
from .encoder import create_encoder


class Pooled(nn.Module):
    """The mean of an encoder's deepest feature map."""

    def __init__(self, encoder: SegmentationNetwork, input_channels: int) -> None:
        super().__init__()
        self.encoder, self.input_channels, self.patch_size = encoder, input_channels, encoder.patch_size

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, *patch_size) to (batch, feature_channels[-1])."""
        return self.encoder.encode(image)[-1].flatten(2).mean(2)


class EncoderPair(NetworkPair):
    """The encoder of any network in 2D and 3D, its deepest features averaged.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis.
        input_channels_2d, input_channels_3d: image channels.
        overrides: arguments of the 3D form.
    """

    def __init__(
        self,
        network: str,
        patch_size_2d: Sequence[int],
        patch_size_3d: Sequence[int],
        input_channels_2d: int,
        input_channels_3d: int,
        overrides: Mapping[str, Any],
    ) -> None:
        super().__init__(
            Pooled(create_encoder(network, input_channels_2d, patch_size_2d, **in_plane(overrides)), input_channels_2d),
            Pooled(create_encoder(network, input_channels_3d, patch_size_3d, **overrides), input_channels_3d),
        )
        self.dim = self.form_2d.encoder.feature_channels[-1]

    def form_weights(self, ndim: int) -> dict[str, Tensor]:
        """Stem and encoder of one form, by the names of the network."""
        return encoder_weights(self.form(ndim).encoder)


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
    """A network in 2D and 3D that share weights: MiT with its token and decoder (UniMiSS), of others the encoder.

    Returns:
        a pair with ``dim`` outputs and ``form_weights``.

    Raises:
        ValueError: as ``create_network``, and if the network lacks one of the two forms.
    """
    if get_network(network).dimensions != (2, 3):
        raise ValueError(f"images and volumes together need a network with a 2D and a 3D form, and {network} has one")
    arguments = form_overrides(network, overrides)
    if not issubclass(get_network(network).network_class, MiT):
        return EncoderPair(network, patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, arguments)
    known = inspect.signature(MiTTrunk).parameters
    arguments = {name: value for name, value in arguments.items() if name in known}
    return MiTPair(patch_size_2d, patch_size_3d, input_channels_2d, input_channels_3d, **arguments)
