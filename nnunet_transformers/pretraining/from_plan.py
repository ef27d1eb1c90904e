"""Arguments of a method that a plan specifies: network, overrides, patch size and channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..architectures import get_network, list_networks
from ..plans.planned import PlannedConfiguration

# arguments in a plan that are not among a method's network overrides
NOT_OVERRIDES = ("patch_size", "strides")


def model_arguments(planned: PlannedConfiguration, known: Sequence[str]) -> dict[str, Any]:
    """Return arguments of a method whose checkpoint fits a planned network without adaptation.

    Args:
        planned: configuration of one of this package's networks.
        known: parameters of the method, to which the result is restricted.

    Returns:
        network, network_overrides, patch_size, input_channels, and patch_size_2d and patch_size_3d for methods that
        train on images and volumes.

    Raises:
        ValueError: if the network is not this package's, or the configuration is 2D and the method needs volumes.
    """
    configuration = planned.configuration
    patch_size = list(planned.patch_size)
    overrides = {k: v for k, v in configuration.network_arch_init_kwargs.items() if k not in NOT_OVERRIDES}
    arguments = {
        "network": _registered_name(configuration.network_arch_class_name, overrides, len(patch_size)),
        "network_overrides": overrides,
        "patch_size": patch_size,
        "input_channels": planned.input_channels,
    }
    if len(patch_size) == 3:
        arguments |= {"patch_size_2d": patch_size[1:], "patch_size_3d": patch_size}
    elif "patch_size_3d" in known:
        raise ValueError(f"the method wants volumes, but {planned.name} is a 2D configuration; take a 3D one")
    return {name: value for name, value in arguments.items() if name in known}


def _registered_name(class_path: str, arguments: dict[str, Any], ndim: int) -> str:
    """Return the registered network of a class that shares most arguments with the plan."""
    own = [name for name in list_networks() if get_network(name).class_path == class_path]
    if not own:
        raise ValueError(f"the plan's network {class_path} is none of this package's; see `nnunet-transformers models`")

    def agreement(name: str) -> int:
        entry = get_network(name).all_arguments(ndim)
        return sum(json.dumps(entry[k]) == json.dumps(v) for k, v in arguments.items() if k in entry)

    return max(own, key=agreement)
