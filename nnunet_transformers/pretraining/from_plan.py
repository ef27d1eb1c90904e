"""What a recipe need not be told where there is a plan: the network, its arguments, patch and channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from ..architectures import get_network, list_networks
from ..plans.plan_files import dataset_folder, load_plans

# a plan holds them apart from what a method calls the network's overrides
APART = ("patch_size", "strides")


@dataclass(frozen=True)
class Planned:
    """A configuration of a plan.

    Attributes:
        plans: the plan.
        name: of the configuration.
        input_channels: of the dataset.
    """

    plans: dict[str, Any]
    name: str
    input_channels: int

    @property
    def configuration(self) -> ConfigurationManager:
        """As nnU-Net reads it."""
        return PlansManager(self.plans).get_configuration(self.name)


def load_planned(dataset: str, plans_name: str, configuration: str) -> Planned:
    """Read a plan.

    Args:
        dataset: nnU-Net's number or name of a planned dataset.
        plans_name: of the plan.
        configuration: of the plan.

    Raises:
        ValueError: if there is no such dataset or configuration.
        FileNotFoundError: if there is no such plan.
    """
    folder = dataset_folder(dataset)
    plans = load_plans(folder, plans_name, plans_name.removesuffix("Plans").replace("nnUNet", "nnUNetPlanner", 1))
    if configuration not in plans["configurations"]:
        raise ValueError(f"{plans_name} has no {configuration}; it has {', '.join(plans['configurations'])}")
    manager = PlansManager(plans)
    dataset_json = json.loads((folder / "dataset.json").read_text())
    channels = determine_num_input_channels(manager, manager.get_configuration(configuration), dataset_json)
    return Planned(plans, configuration, channels)


def model_arguments(planned: Planned, known: Sequence[str]) -> dict[str, Any]:
    """Arguments for a method, so that its checkpoint fits a planned network as it is.

    Args:
        planned: of one of this package's networks.
        known: parameters of the method; of the result only these.

    Returns:
        network, network_overrides, patch_size, input_channels, and, for methods of images and volumes, patch_size_2d
        and patch_size_3d.

    Raises:
        ValueError: if the plan is of another network, or in 2D for a method of volumes.
    """
    configuration = planned.configuration
    patch_size = [int(p) for p in configuration.patch_size]
    overrides = {k: v for k, v in configuration.network_arch_init_kwargs.items() if k not in APART}
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
    """The network of a class that has most of its own arguments in common with a plan's."""
    own = [name for name in list_networks() if get_network(name).class_path == class_path]
    if not own:
        raise ValueError(f"the plan's network {class_path} is none of this package's; see `nnunet-transformers models`")

    def agreement(name: str) -> int:
        entry = get_network(name).all_arguments(ndim)
        return sum(json.dumps(entry[k]) == json.dumps(v) for k, v in arguments.items() if k in entry)

    return max(own, key=agreement)
