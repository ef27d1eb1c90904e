"""The checkpoint that a pretraining method writes of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus

from ..architectures import SegmentationNetwork
from ..weights import EncoderCheckpoint, PrimusCheckpoint, encoder_weights
from .data.index import PreparedIndex


def data_settings(index: PreparedIndex, axes: int | None = None) -> dict[str, Any]:
    """Return the fields of a checkpoint that describe the images it was trained on.

    Args:
        index: index of the prepared images; that of the accompanying 2D images, if any, describes two axes.
        axes: number of the last axes whose spacing is stated; None for images without spacing.

    Raises:
        ValueError: if the images have no spacing although ``axes`` are given.
    """
    own = index.images if axes == 2 and index.images is not None else index
    settings = {"normalization": own.normalization, "num_cases": len(own.cases)}
    return settings if axes is None else {**settings, "spacing": own.spacing_of(axes)}


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
        "method": method,
        "recipe": recipe,
        **data_settings(index, len(settings["patch_size"])),
    }
    if isinstance(network, Primus):
        return PrimusCheckpoint(encoder_weights(network), **known)
    return EncoderCheckpoint(encoder_weights(network), **known, overrides=settings["network_overrides"] or {})
