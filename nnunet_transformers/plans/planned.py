"""A configuration of a plan with its dataset: input channels, segmentation heads, network and planner."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from .._reading import first_line, read_json
from .builder import find_builder
from .changed_patch import architecture_for_patch
from .gate import check_network
from .plan_files import dataset_folder, load_plans


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the image channels in ``dataset.json``, in the order of the channels.

    Raises:
        KeyError: if it has neither ``channel_names`` nor ``modality``, their key in nnU-Net v1.
    """
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    return [names[key] for key in sorted(names, key=int)]


def label_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    """Names of the labels and regions in ``dataset.json`` by their keys in nnU-Net's summary.json, 1 or (1, 2)."""
    labels = dataset_json["labels"].items()
    return {str(tuple(value) if isinstance(value, list | tuple) else value): name for name, value in labels}


def check_labels(labels: LabelManager) -> None:
    """Check that each label is the number of a segmentation head, as nnU-Net's loss assumes of labels without regions.

    Raises:
        ValueError: names the labels.
    """
    if not labels.has_regions and labels.all_labels != list(range(labels.num_segmentation_heads)):
        values = ", ".join(map(str, labels.all_labels))
        raise ValueError(
            f"the labels in dataset.json are {values}, but nnU-Net needs consecutive ones from 0 to "
            f"{labels.num_segmentation_heads - 1}. Renumber them in dataset.json and in the files of labelsTr, then "
            "plan and preprocess again"
        )


@dataclass(frozen=True)
class PlannedConfiguration:
    """One configuration of a plan, with the dataset that it was planned for.

    Attributes:
        plans: content of the plan file.
        dataset_json: content of ``dataset.json``.
        name: of the configuration, such as ``3d_fullres``.

    Raises:
        ValueError: if the plan has no configuration of this name; lists those that it has.
    """

    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    name: str

    def __post_init__(self) -> None:
        if self.name not in self.plans["configurations"]:
            known = ", ".join(self.plans["configurations"])
            raise ValueError(f"{self.plans['plans_name']} has no {self.name}; it has {known}")

    @classmethod
    def load(cls, dataset: str, plans_name: str, name: str) -> PlannedConfiguration:
        """Read a configuration from nnU-Net's preprocessed folder.

        Args:
            dataset: nnU-Net's number or name of a planned dataset.
            plans_name: name of the plan.
            name: name of the configuration.

        Raises:
            ValueError: if there is no such dataset or configuration.
            FileNotFoundError: if there is no such plan.
        """
        folder = dataset_folder(dataset)
        plans = load_plans(folder, plans_name)
        return cls(plans, read_json(folder / "dataset.json"), name)

    @cached_property
    def manager(self) -> PlansManager:
        """The plan as nnU-Net reads it: a copy, since nnU-Net modifies it."""
        return PlansManager(deepcopy(dict(self.plans)))

    @cached_property
    def configuration(self) -> ConfigurationManager:
        """The configuration as nnU-Net reads it, including inherited entries, with the network for its patch.

        Raises:
            ValueError: if ``patch_size`` was changed to one that the network's strides do not divide, or the
                configuration inherits from none or has no network.
        """
        try:
            configuration: ConfigurationManager = self.manager.get_configuration(self.name)
            entries = configuration.configuration
            entries["architecture"] = architecture_for_patch(entries, self.planner)
        except (ValueError, RuntimeError) as error:  # the latter where configurations inherit from each other
            raise ValueError(f"{self.plans['plans_name']}, {self.name}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.plans['plans_name']}, {self.name}: describes no network that can be built ({error!r}); plan "
                "again"
            ) from error
        return configuration

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(int(p) for p in self.configuration.patch_size)

    @property
    def input_channels(self) -> int:
        """Input channels of the network: the image's, and in a cascade the previous segmentation's."""
        channels: int = determine_num_input_channels(self.manager, self.configuration, dict(self.dataset_json))
        return channels

    @property
    def num_classes(self) -> int:
        """Number of segmentation heads: labels including the background, or regions."""
        heads: int = self.manager.get_label_manager(dict(self.dataset_json)).num_segmentation_heads
        return heads

    @property
    def planner(self) -> str | None:
        """Name of the planner that made the plan, None where the plan does not state it."""
        return self.plans.get("experiment_planner_used")

    def build_network(
        self, trainer: str = "nnUNetTrainer", deep_supervision: bool = False, trust: bool = False
    ) -> nn.Module:
        """Build the network as nnU-Net does.

        Args:
            trainer: name of the trainer that builds it. Most build the plan's network; some, such as nnU-Net's for
                Primus, build a network of their own.
            deep_supervision: whether the network returns a list of logits.
            trust: build whatever the plan names, see ``check_network``.

        Raises:
            ValueError: if the plan names other code than networks, nnU-Net does not find the trainer, or the network
                cannot take the plan's patch or arguments.
        """
        if not trust:
            check_network(self.configuration.configuration, f"{self.name} of the plan {self.manager.plans_name}")
        build = find_builder(trainer).build_network_architecture
        channels, classes = self.input_channels, self.num_classes
        try:
            network: nn.Module = build(self.manager, self.configuration, channels, classes, deep_supervision)
        except (AssertionError, TypeError, KeyError, IndexError, AttributeError) as error:
            # what is asserted without a message is that the tokens of nnU-Net's Primus divide the patch
            reason = first_line(error) if str(error) else "Primus needs multiples of 8"
            raise ValueError(
                f"{trainer} cannot build the network of {self.manager.plans_name}, {self.name}, for the patch "
                f"{list(self.patch_size)}: {reason}; correct the plan"
            ) from error
        return network
