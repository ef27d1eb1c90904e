"""The checkpoint that a pretraining method writes of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus

from ..architectures import SegmentationNetwork
from ..weights import EncoderCheckpoint, PrimusCheckpoint, encoder_weights, primus_weights
from .data.index import PreparedIndex


def encoder_checkpoint(
    network: SegmentationNetwork | Primus,
    method: str,
    settings: Mapping[str, Any],
    index: PreparedIndex,
    recipe: dict[str, Any],
) -> EncoderCheckpoint | PrimusCheckpoint:
    """Build the checkpoint of a method that trains one encoder.

    Args:
        network: result of ``create_encoder``, or a Primus.
        method: name of the method.
        settings: hyper-parameters of the method: network, patch_size, input_channels and network_overrides.
        index: index of the prepared images.
        recipe: settings of the run, plain types.

    Raises:
        ValueError: if the images have no spacing.
    """
    known = {
        "name": settings["network"],
        "patch_size": tuple(settings["patch_size"]),
        "input_channels": settings["input_channels"],
        "spacing": index.spacing_of(len(settings["patch_size"])),
        "normalization": index.normalization,
        "method": method,
        "recipe": recipe,
        "num_cases": len(index.cases),
    }
    if isinstance(network, Primus):
        return PrimusCheckpoint(primus_weights(network), **known)
    return EncoderCheckpoint(encoder_weights(network), **known, overrides=settings["network_overrides"] or {})
