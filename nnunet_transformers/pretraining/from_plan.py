"""What a recipe need not be told where there is a plan: the network, its arguments, patch and channels."""

from __future__ import annotations

import json
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from ..architectures import get_network, list_networks
from ..plans.files import dataset_folder, load_plans

# a plan holds them apart from what a method calls the network's overrides
APART = ("patch_size", "strides")


def model_arguments(dataset: str, plans_name: str, configuration: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Arguments for a method, so that its checkpoint fits a planned network as it is.

    Args:
        dataset: nnU-Net's number or name of a planned dataset.
        plans_name: plan of one of this package's networks.
        configuration: of the plan.
        known: parameters of the method; of the result only these.

    Returns:
        network, network_overrides, patch_size, input_channels, and, for methods of images and volumes, patch_size_2d
        and patch_size_3d.

    Raises:
        ValueError: if there is no such dataset or configuration, or the plan is of another network.
        FileNotFoundError: if there is no such plan.
    """
    folder = dataset_folder(dataset)
    plans = load_plans(folder, plans_name, plans_name.removesuffix("Plans").replace("nnUNet", "nnUNetPlanner", 1))
    if configuration not in plans["configurations"]:
        raise ValueError(f"{plans_name} has no {configuration}; it has {', '.join(plans['configurations'])}")
    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, planned, json.loads((folder / "dataset.json").read_text()))
    patch_size = [int(p) for p in planned.patch_size]
    overrides = {k: v for k, v in planned.network_arch_init_kwargs.items() if k not in APART}
    arguments = {
        "network": _registered_name(planned.network_arch_class_name, overrides, len(patch_size)),
        "network_overrides": overrides,
        "patch_size": patch_size,
        "input_channels": channels,
    }
    if len(patch_size) == 3:
        arguments |= {"patch_size_2d": patch_size[1:], "patch_size_3d": patch_size}
    elif "patch_size_3d" in known:
        raise ValueError(f"the method wants volumes, but {configuration} of {plans_name} is 2D; take a 3D one")
    return {name: value for name, value in arguments.items() if name in known}


def _registered_name(class_path: str, arguments: dict[str, Any], ndim: int) -> str:
    """The network of a class that has most of its own arguments in common with a plan's."""
    own = [name for name in list_networks() if get_network(name).class_path == class_path]
    if not own:
        raise ValueError(f"the plan's network {class_path} is none of this package's; see `nnunet-transformers models`")

    def agreement(name: str) -> int:
        entry = get_network(name).all_arguments(ndim)
        return sum(json.dumps(entry[k]) == json.dumps(v) for k, v in arguments.items() if k in entry)

    return max(own, key=agreement)
