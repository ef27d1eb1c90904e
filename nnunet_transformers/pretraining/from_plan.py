"""Arguments of a pretraining method that a plan specifies: network, overrides, patch size and channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..architectures import find_stock, get_network, list_networks
from ..plans.planned import PlannedConfiguration
from ..runs.gate import check_arguments

# arguments in a plan that are not among a method's network overrides
NOT_OVERRIDES = ("patch_size", "strides")


def model_arguments(planned: PlannedConfiguration, known: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with which a method pretrains exactly the planned network.

    Args:
        planned: planned configuration of one of this package's networks, or of nnU-Net's own CNNs.
        known: names of the method's arguments; others are omitted.

    Returns:
        ``network``, ``network_overrides``, ``patch_size`` and ``input_channels``; for methods on images and volumes
        ``patch_size_2d`` and ``patch_size_3d``.

    Raises:
        ValueError: if the network is neither of this package nor one of nnU-Net's own CNNs, the plan has arguments of
            other types than plain ones, or the configuration is 2D and the method needs volumes.
    """
    configuration = planned.configuration
    patch_size = list(planned.patch_size)
    class_path, given = configuration.network_arch_class_name, configuration.network_arch_init_kwargs
    stock = find_stock(class_path)
    overrides = {"architecture": given} if stock else {k: v for k, v in given.items() if k not in NOT_OVERRIDES}
    check_arguments(overrides, f"{planned.name} of the plan {planned.plans.get('plans_name')}")
    arguments = {
        "network": stock or _registered_name(class_path, overrides, len(patch_size)),
        "network_overrides": overrides,
        "patch_size": patch_size,
        "input_channels": planned.input_channels,
    }
    if len(patch_size) == 3:
        arguments |= {"patch_size_2d": patch_size[1:], "patch_size_3d": patch_size}
    elif "patch_size_3d" in known:
        raise ValueError(f"the method needs volumes, but {planned.name} is a 2D configuration; choose a 3D one (-c)")
    return {name: value for name, value in arguments.items() if name in known}


def _registered_name(class_path: str, arguments: dict[str, Any], ndim: int) -> str:
    """Return the registered network of a class that has most arguments in common with the plan."""
    candidates = [name for name in list_networks() if get_network(name).class_path == class_path]
    if not candidates:
        raise ValueError(
            f"the plan's network {class_path} is not of this package, see `nnunet-transformers models`, and none of "
            "nnU-Net's CNNs"
        )

    def common_arguments(name: str) -> int:
        registered = get_network(name).all_arguments(ndim)
        return sum(json.dumps(registered[k]) == json.dumps(v) for k, v in arguments.items() if k in registered)

    return max(candidates, key=common_arguments)
