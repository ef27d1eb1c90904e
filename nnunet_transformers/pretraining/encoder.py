"""What a pretraining method trains: a registered network without its decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..architectures import SegmentationNetwork, create_network


def create_encoder(name: str, input_channels: int, patch_size: Sequence[int], **overrides: Any) -> SegmentationNetwork:
    """A network whose ``encode`` works and that has no parameter besides stem and encoder.

    Raises:
        ValueError: as ``create_network``.
    """
    network = create_network(name, input_channels, 2, patch_size, **overrides)
    network.decoder = nn.Identity()
    return network
