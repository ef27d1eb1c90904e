"""The papers' experiments as plans: ``presets.yaml`` has them, ``apply_preset`` writes one into a dataset's plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.resources import files
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from .._atomic import write_json
from ..architectures import create_network, get_network
from ..discovery import SCHEDULES, schedule_name
from .memory import CUDA_OVERHEAD, training_step_bytes
from .plan_files import check_new_plans, dataset_folder, load_plans
from .planned import PlannedConfiguration

ITERATIONS_PER_EPOCH = 250  # nnU-Net's


@dataclass(frozen=True)
class Preset:
    """A published segmentation experiment, as far as a plan and nnU-Net's commands can specify it.

    Attributes:
        name: how the command calls it.
        network: registered network.
        planner: whose plan it starts from.
        trainer: with the paper's recipe, or the nearest one; without the length of its schedule.
        configuration: nnU-Net's, ``2d`` or ``3d_fullres``.
        patch_size: voxels per axis, depth first.
        batch_size: samples per step.
        spacing: mm per voxel and axis, depth first; None keeps the planner's, as the source gives none.
        overrides: arguments of the network beyond its registered ones.
        step_size: of the sliding window, as a part of the patch; an option of prediction, not of a plan.
        deep_supervision: whether the published network was trained with it.
        mixed_precision: whether the trainer uses it; only the estimate of memory depends on it.
        iterations: optimiser steps of the published training, where known.
        data: ``channels`` and ``classes`` of the paper's data; None where unknown.
        published: metric to value, by start of the weights (``pretrained`` or ``scratch``); in % (HD95 in mm).
        source: paper, table, section.
        notes: what to know before comparing.
    """

    name: str
    network: str
    planner: str
    trainer: str
    configuration: str
    patch_size: Sequence[int]
    batch_size: int
    spacing: Sequence[float] | None
    step_size: float
    deep_supervision: bool
    source: str
    data: dict[str, int | None]
    published: dict[str, dict[str, float]]
    overrides: dict[str, Any] = field(default_factory=dict)
    mixed_precision: bool = True
    iterations: int | None = None
    notes: Sequence[str] = ()

    @property
    def plans_name(self) -> str:
        """The plan it starts from: ``nnUNetPlannerX`` makes ``nnUNetXPlans``."""
        return self.planner.replace("Planner", "") + "Plans"

    @property
    def scheduled_trainer(self) -> str:
        """The trainer with the schedule whose length is nearest to the published one, where that is known."""
        if self.iterations is None:
            return self.trainer
        epochs = self.iterations / ITERATIONS_PER_EPOCH
        return schedule_name(self.trainer, min(SCHEDULES, key=lambda length: abs(log(length / epochs))))

    @property
    def ndim(self) -> int:
        """Image axes that the network sees."""
        return len(self.patch_size)

    def network_arguments(self, input_channels: int, num_classes: int) -> dict[str, Any]:
        """Complete ``arch_kwargs`` for a plan; the network is built, without memory, to learn its strides.

        Raises:
            ValueError: if the network is not registered, has no such override or cannot take the patch.
        """
        with torch.device("meta"):
            network = create_network(
                self.network, input_channels, num_classes, self.patch_size, self.deep_supervision, **self.overrides
            )
        arguments = {
            **get_network(self.network).all_arguments(self.ndim),
            **network.resolved_arguments,
            **self.overrides,
            "patch_size": self.patch_size,
            # in the plan, because inference builds the network without deep supervision and loads strictly; without
            # these heads our trainers leave deep supervision off
            "auxiliary_heads": self.deep_supervision,
            "strides": network.strides,
        }
        # through JSON, as nnU-Net will read them
        return json.loads(json.dumps({name: value for name, value in arguments.items() if value is not None}))


@lru_cache(maxsize=1)
def load_presets() -> dict[str, Preset]:
    """All presets by name, in the order of ``presets.yaml``."""
    families = yaml.safe_load(files(__package__).joinpath("presets.yaml").read_text(encoding="utf-8"))
    presets = {}
    for family in families.values():
        for experiment_name, experiment in family["experiments"].items():
            for variant_name, variant in experiment.get("variants", {"": {}}).items():
                name = f"{experiment_name}-{variant_name}".removesuffix("-")
                layers = (family["defaults"], family.get("variants", {}).get(variant_name, {}), experiment, variant)
                presets[name] = Preset(name, **_merge(layers))
    return presets


def _merge(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
        overrides |= layer.get("overrides", {})
    merged.pop("variants", None)
    return {**merged, "overrides": overrides}


def get_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: if there is none; names the closest ones.
    """
    presets = load_presets()
    if name not in presets:
        close = get_close_matches(name, presets, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`nnunet-transformers preset --list` has them all"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return presets[name]


@dataclass(frozen=True)
class AppliedPreset:
    """A preset in a dataset's plan.

    Attributes:
        preset: what was applied.
        path: plan file written.
        plans: its content.
        planned: the planner's configuration that it replaced.
        input_channels, num_classes: of the dataset.
    """

    preset: Preset
    path: Path
    plans: dict[str, Any]
    planned: dict[str, Any]
    input_channels: int
    num_classes: int

    @property
    def configuration(self) -> dict[str, Any]:
        """The preset's configuration in the plan."""
        return self.plans["configurations"][self.preset.configuration]

    @property
    def dataset_id(self) -> int:
        """nnU-Net's number of the dataset."""
        return convert_dataset_name_to_id(self.plans["dataset_name"])

    def build_network(self) -> nn.Module:
        """The network as nnU-Net builds it from the plan for training."""
        architecture = self.configuration["architecture"]
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            self.input_channels,
            self.num_classes,
            deep_supervision=self.preset.deep_supervision,
        )

    @cached_property
    def parameters(self) -> int:
        """Parameters of the network."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build_network().parameters())

    def training_bytes(self) -> int:
        """Estimated memory of a training step on a GPU."""
        preset = self.preset
        fixed, sample = training_step_bytes(
            self.build_network, self.input_channels, preset.patch_size, mixed_precision=preset.mixed_precision
        )
        overhead = 0 if preset.mixed_precision else int(CUDA_OVERHEAD)
        return fixed + overhead + preset.batch_size * sample

    def commands(self) -> list[str]:
        """nnU-Net's commands that preprocess, train and predict; ``INPUT`` and ``OUTPUT`` are the user's folders."""
        preset, plans_name = self.preset, self.plans["plans_name"]
        data = self.path.parent / self.configuration["data_identifier"]
        # preprocessing again would delete data that other plans share
        preprocess = [
            f"nnUNetv2_preprocess -d {self.dataset_id} -c {preset.configuration} -plans_name {plans_name}"
        ] * (not data.is_dir())
        model = f"-c {preset.configuration} -p {plans_name} -tr {preset.scheduled_trainer} -f 0"
        return [
            *preprocess,
            f"nnUNetv2_train {self.dataset_id} {preset.configuration} 0 -p {plans_name} -tr {preset.scheduled_trainer}",
            f"nnUNetv2_predict -i INPUT -o OUTPUT -d {self.dataset_id} {model} -step_size {preset.step_size:g}",
        ]


def apply_preset(preset: Preset, dataset: str, plans_name: str | None = None, force: bool = False) -> AppliedPreset:
    """Write a dataset's plan with a preset's configuration.

    The new plan has this one configuration and leaves the planner's as it is. Where the preset sets another spacing
    than the planner, the configuration gets a preprocessed folder of its own.

    Args:
        preset: what to apply.
        dataset: nnU-Net's name or number of a planned dataset.
        plans_name: of the new plan; the planner's plan, an underscore and the preset by default.
        force: replace a plan of this name, if it is a preset's.

    Raises:
        ValueError: if the dataset is unknown, the plan does not fit the preset, or the name cannot be a plan's.
        FileNotFoundError: if the dataset has not been planned with the preset's planner.
        FileExistsError: if there is a plan of the new name, unless it is a preset's and ``force``.
    """
    folder = dataset_folder(dataset)
    plans_name = plans_name or f"{preset.plans_name}_{preset.name}"
    path = check_new_plans(folder, plans_name, preset.plans_name, "preset", force)
    plans = load_plans(folder, preset.plans_name)

    manager = PlansManager(plans)
    if preset.configuration not in manager.available_configurations:
        raise ValueError(
            f"{preset.name} is {preset.configuration}, and {preset.plans_name} of {folder.name} has only "
            f"{', '.join(manager.available_configurations)}; choose a preset of another configuration"
        )
    dataset_json = json.loads((folder / "dataset.json").read_text())
    replaced = PlannedConfiguration(plans, dataset_json, preset.configuration)
    planned = replaced.configuration.configuration
    input_channels, num_classes = replaced.input_channels, replaced.num_classes

    configuration = {k: v for k, v in planned.items() if k not in ("next_stage", "previous_stage", "inherits_from")}
    configuration |= {
        "patch_size": list(preset.patch_size),
        "batch_size": preset.batch_size,
        "architecture": {
            "network_class_name": get_network(preset.network).class_path,
            "arch_kwargs": preset.network_arguments(input_channels, num_classes),
            "_kw_requires_import": [],
        },
    }
    if preset.spacing is not None and not np.allclose(preset.spacing, planned["spacing"], rtol=1e-3):
        # its own preprocessed folder, as the planner's holds data of another spacing
        configuration["data_identifier"] = f"{plans_name}_{preset.configuration}"
        configuration["spacing"] = list(preset.spacing)
        ratio = np.divide(planned["spacing"], preset.spacing)
        configuration["median_image_size_in_voxels"] = (planned["median_image_size_in_voxels"] * ratio).tolist()
    plans |= {"plans_name": plans_name, "preset": preset.name, "configurations": {preset.configuration: configuration}}

    applied = AppliedPreset(preset, path, plans, planned, input_channels, num_classes)
    with torch.device("meta"):
        applied.build_network()
    write_json(plans, path)
    return applied
