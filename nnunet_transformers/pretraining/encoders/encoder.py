"""What a pretraining method trains: a registered network without its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus
from timm.layers import DropPath
from torch import nn

from ...architectures import SegmentationNetwork
from ...weights import EncoderCheckpoint, PrimusCheckpoint, encoder_weights, primus_weights


def rest_drop_path(network: nn.Module) -> None:
    """Switch drop path off for good: what a slow copy says is a target, which should not be noisy."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0


def encoder_checkpoint(
    network: SegmentationNetwork | Primus,
    method: str,
    settings: Mapping[str, Any],
    index: dict[str, Any],
    recipe: dict[str, Any],
) -> EncoderCheckpoint | PrimusCheckpoint:
    """What a method that trains one encoder writes.

    Args:
        network: of ``create_encoder``, or a Primus.
        method: its name.
        settings: its hyper-parameters: network, patch_size, input_channels and network_overrides.
        index: of the prepared data.
        recipe: settings of the run, plain types.
    """
    known = {
        "name": settings["network"],
        "patch_size": tuple(settings["patch_size"]),
        "input_channels": settings["input_channels"],
        "spacing": tuple(index["spacing"])[-len(settings["patch_size"]) :],
        "normalization": tuple(index["normalization"]),
        "method": method,
        "recipe": recipe,
        "num_cases": len(index["cases"]),
    }
    if isinstance(network, Primus):
        return PrimusCheckpoint(primus_weights(network), **known)
    return EncoderCheckpoint(encoder_weights(network), **known, overrides=settings["network_overrides"] or {})
