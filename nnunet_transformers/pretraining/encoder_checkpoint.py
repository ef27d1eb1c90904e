"""Encoder checkpoints that the pretraining methods write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from dynamic_network_architectures.architectures.primus import Primus
from torch import Tensor, nn

from ..architectures import NetworkPair, SegmentationNetwork, form_overrides
from ..architectures._arguments import in_plane
from ..plans.preparation import ct_ranges
from ..weights import EncoderCheckpoint, PretrainedWeights, PrimusCheckpoint, TimmCheckpoint, encoder_weights
from .data.index import PreparedIndex


def encoder_checkpoint(
    network: nn.Module,
    method: str,
    settings: Mapping[str, Any],
    index: PreparedIndex,
    recipe: dict[str, Any],
) -> PretrainedWeights:
    """Build the checkpoint of a method that trains one encoder.

    Args:
        network: result of ``create_encoder``, ``create_primus`` or ``create_timm``.
        method: name of the method.
        settings: hyper-parameters of the method: ``network``, ``patch_size``, ``input_channels`` and
            ``network_overrides``.
        index: index of the images.
        recipe: settings of the run, plain types.

    Raises:
        TypeError: if the network is another one.
    """
    known: dict[str, Any] = {
        "name": settings["network"],
        "patch_size": tuple(settings["patch_size"]),
        "input_channels": settings["input_channels"],
        "method": method,
        "recipe": recipe,
        **_describe_images(index, len(settings["patch_size"])),
    }
    if isinstance(network, SegmentationNetwork):
        return EncoderCheckpoint(encoder_weights(network), overrides=settings["network_overrides"] or {}, **known)
    if isinstance(network, Primus):
        return PrimusCheckpoint(encoder_weights(network), **known)
    if timm.is_model(settings["network"]):
        return TimmCheckpoint(all_weights(network), **known)
    raise TypeError(
        f"there is no encoder checkpoint of a {type(network).__name__}: it is not a registered network, a Primus or a "
        f"timm network; override checkpoints() of {method}"
    )


def pair_checkpoints(
    pair: NetworkPair, method: str, settings: Mapping[str, Any], index: PreparedIndex, recipe: dict[str, Any]
) -> dict[str, EncoderCheckpoint]:
    """Build the checkpoints of a method that trains the 2D and the 3D form of a network.

    Args:
        pair: result of ``create_pair``.
        method: name of the method.
        settings: hyper-parameters of the method: ``network``, ``patch_size_2d``, ``patch_size_3d`` and
            ``network_overrides``.
        index: index of the volumes; its ``images`` describe the 2D images, if there are any.
        recipe: settings of the run, plain types.

    Returns:
        ``encoder_2d.pth`` and ``encoder_3d.pth``.
    """
    overrides = form_overrides(settings["network"], settings["network_overrides"])
    checkpoints = {}
    for ndim in (2, 3):
        form: Any = pair.form(ndim)
        images = index.images if ndim == 2 and index.images is not None else index
        description = _describe_images(images, ndim)
        if len(description["normalization"]) == 1:  # the 2D form repeats a grey image
            description["normalization"] *= form.input_channels
        checkpoints[f"encoder_{ndim}d.pth"] = EncoderCheckpoint(
            _to_cpu({**pair.form_weights(ndim), **pair.token_weights(ndim)}),
            name=settings["network"],
            patch_size=tuple(settings[f"patch_size_{ndim}d"]),
            input_channels=form.input_channels,
            overrides=overrides if ndim == 3 else in_plane(overrides),
            method=method,
            recipe=recipe,
            **description,
        )
    return checkpoints


def all_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a module by name, detached, on the CPU."""
    return _to_cpu(module.state_dict())


def _to_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in weights.items()}


def _describe_images(index: PreparedIndex, axes: int) -> dict[str, Any]:
    """Return the fields of a checkpoint that describe its images, with the spacing of the last ``axes`` axes."""
    spacing = None if index.spacing is None else index.spacing_of(axes)
    return {
        "normalization": index.normalization,
        "num_cases": len(index.cases),
        "spacing": spacing,
        "ct_ranges": ct_ranges(index.plans, index.normalization),
    }
