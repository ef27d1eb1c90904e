"""Published experiments as plans: ``presets.yaml`` lists them, ``apply_preset`` writes one as a plan of a dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from .._atomic import write_json
from .._meta import without_data
from .._reading import read_json
from ..architectures import create_network, get_network
from ..discovery import plans_name
from .memory import CUDA_OVERHEAD, training_step_bytes
from .plan_files import check_new_plans, dataset_folder, dataset_number, load_plans
from .planned import PlannedConfiguration
from .training import ENTRY as TRAINING
from .training import TrainingSettings


@dataclass(frozen=True)
class Preset:
    """A published segmentation experiment, as far as a plan and nnU-Net's commands can reproduce it.

    Attributes:
        name: its name on the command line.
        network: registered network.
        planner: planner whose plan it starts from.
        trainer: trainer of the network, which follows ``training``.
        configuration: nnU-Net's, ``2d`` or ``3d_fullres``.
        patch_size: voxels per axis, depth first.
        batch_size: samples per step.
        spacing: mm per voxel and axis, depth first; None where the source gives none, which keeps the planner's.
        overrides: arguments of the network besides its registered ones.
        step_size: step of the sliding window as a fraction of the patch; an option of prediction, not of a plan.
        deep_supervision: whether the published network was trained with it.
        training: the published recipe, settings of ``TrainingSettings`` by name.
        mixed_precision: whether the published training used it; otherwise the plan has ``autocast_dtype`` float32.
        data: ``channels`` and ``classes`` of the paper's data; None where unknown.
        published: metric to value by initial weights (``pretrained`` or ``scratch``); in % (HD95 in mm).
        evaluation: command of this package that computes the published metrics; ``OUTPUT`` are predictions and
            ``LABELS`` references.
        source: paper, table, section.
        notes: caveats of a comparison.
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
    training: dict[str, Any] = field(default_factory=dict)
    mixed_precision: bool = True
    evaluation: str = "evaluate OUTPUT LABELS"
    notes: Sequence[str] = ()

    @property
    def plans_name(self) -> str:
        """Name of the plan that it starts from."""
        return plans_name(self.planner)

    @property
    def settings(self) -> TrainingSettings:
        """The published recipe.

        Raises:
            ValueError: if a setting does not exist or has an impossible value.
        """
        return TrainingSettings(**self.training)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.patch_size)

    def network_arguments(self, input_channels: int, num_classes: int) -> dict[str, Any]:
        """Complete ``arch_kwargs`` for a plan, from the network built on the meta device.

        Args:
            input_channels: image channels.
            num_classes: output channels.

        Raises:
            ValueError: if the network is not registered, does not take an override or the patch.
        """
        with without_data():
            network = create_network(
                self.network, input_channels, num_classes, self.patch_size, self.deep_supervision, **self.overrides
            )
        # auxiliary_heads because inference builds the network without deep supervision and loads strictly; our trainers
        # leave deep supervision off where a plan states no such heads
        arguments = get_network(self.network).plan_arguments(
            network, **self.overrides, auxiliary_heads=self.deep_supervision
        )
        as_read: dict[str, Any] = json.loads(json.dumps(arguments))  # nnU-Net reads lists, not tuples
        return as_read


@lru_cache(maxsize=1)
def load_presets() -> dict[str, Preset]:
    """Read all presets, by name in the order of ``presets.yaml``."""
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
    for layer in layers:
        mappings = {name: merged.get(name, {}) | layer.get(name, {}) for name in ("overrides", "training")}
        merged |= layer | mappings
    merged.pop("variants", None)
    return merged


def get_preset(name: str) -> Preset:
    """Look up a preset.

    Raises:
        ValueError: if there is none; names the closest ones.
    """
    presets = load_presets()
    if name not in presets:
        close = [known for known in presets if name in known][:3] or get_close_matches(name, presets, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`nnunet-transformers preset --list` has them all"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return presets[name]


@dataclass(frozen=True)
class AppliedPreset:
    """A preset written as a plan of a dataset.

    Attributes:
        preset: the preset.
        path: the plan file.
        written: its one configuration.
        planned: the planner's configuration that it replaces.
    """

    preset: Preset
    path: Path
    written: PlannedConfiguration
    planned: dict[str, Any]

    @property
    def configuration(self) -> dict[str, Any]:
        """The preset's configuration in the plan."""
        configuration: dict[str, Any] = self.written.plans["configurations"][self.written.name]
        return configuration

    @property
    def dataset_id(self) -> int | str:
        """nnU-Net's number of the dataset."""
        return dataset_number(self.written.plans["dataset_name"])

    def build_network(self) -> nn.Module:
        """Build the network as nnU-Net does for training."""
        return self.written.build_network(deep_supervision=self.preset.deep_supervision)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        with without_data():
            return sum(p.numel() for p in self.build_network().parameters())

    def training_bytes(self) -> int:
        """Estimate the bytes of a training step on a GPU."""
        preset = self.preset
        fixed, sample = training_step_bytes(
            self.build_network, self.written.input_channels, preset.patch_size, preset.mixed_precision
        )
        overhead = 0 if preset.mixed_precision else int(CUDA_OVERHEAD)
        return fixed + overhead + preset.batch_size * sample

    def commands(self) -> list[str]:
        """Commands that preprocess, train, predict, and compute the published metrics, if there are any.

        ``INPUT``, ``OUTPUT`` and ``LABELS`` are the user's folders, ``ENCODER`` weights for a frozen encoder.
        """
        preset, plans = self.preset, self.written.plans["plans_name"]
        data = self.path.parent / self.configuration["data_identifier"]
        # preprocessing again would delete data that other plans share
        is_shared = data.is_dir() and not data.name.startswith(plans)
        preprocess = [f"nnUNetv2_preprocess -d {self.dataset_id} -c {preset.configuration} -plans_name {plans}"] * (
            not is_shared
        )
        attach = []
        if preset.settings.frozen_fraction == 1:  # which asks for weights
            attach = [f"nnunet-transformers attach ENCODER -d {self.dataset_id} -p {plans} -o {plans}_pretrained"]
            plans = f"{plans}_pretrained"
        model = f"-c {preset.configuration} -p {plans} -tr {preset.trainer} -f 0"
        options = f"-step_size {preset.step_size:g}" + " --disable_tta" * (preset.settings.mirroring is False)
        options += " --save_probabilities" * preset.evaluation.startswith("evaluate-iou")
        return [
            *preprocess,
            *attach,
            f"nnUNetv2_train {self.dataset_id} {preset.configuration} 0 -p {plans} -tr {preset.trainer}",
            f"nnUNetv2_predict -i INPUT -o OUTPUT -d {self.dataset_id} {model} {options}",
            *[f"nnunet-transformers {preset.evaluation}"] * bool(preset.published),
        ]


def apply_preset(preset: Preset, dataset: str, name: str | None = None, force: bool = False) -> AppliedPreset:
    """Write a preset as a plan of a dataset.

    The new plan has this one configuration; the planner's plan is not changed. A configuration with another spacing
    than the planner's gets a preprocessed folder of its own.

    Args:
        preset: the preset.
        dataset: nnU-Net's name or number of a planned dataset.
        name: name of the new plan; by default the planner's plan, an underscore and the preset.
        force: replace a plan of this name if a preset wrote it.

    Raises:
        ValueError: if the dataset is unknown, the planner's plan lacks the configuration, or ``name`` is no plan's.
        FileNotFoundError: if the dataset has not been planned with the preset's planner.
        FileExistsError: if there is a plan of the new name, unless a preset wrote it and ``force`` is set.
    """
    folder = dataset_folder(dataset)
    name = name or f"{preset.plans_name}_{preset.name}"
    path = check_new_plans(folder, name, preset.plans_name, "preset", force)
    plans = load_plans(folder, preset.plans_name)

    manager = PlansManager(plans)
    if preset.configuration not in manager.available_configurations:
        raise ValueError(
            f"{preset.name} is {preset.configuration}, and {preset.plans_name} of {folder.name} has only "
            f"{', '.join(manager.available_configurations)}; choose a preset of another configuration"
        )
    dataset_json = read_json(folder / "dataset.json")
    replaced = PlannedConfiguration(plans, dataset_json, preset.configuration)
    planned = replaced.configuration.configuration

    configuration = {k: v for k, v in planned.items() if k not in ("next_stage", "previous_stage", "inherits_from")}
    configuration |= {
        "patch_size": list(preset.patch_size),
        "batch_size": preset.batch_size,
        "architecture": {
            "network_class_name": get_network(preset.network).class_path,
            "arch_kwargs": preset.network_arguments(replaced.input_channels, replaced.num_classes),
            "_kw_requires_import": [],
        },
        TRAINING: preset.settings.stated(),
    }
    if not preset.mixed_precision:
        configuration["autocast_dtype"] = "float32"
    if preset.spacing is not None and not np.allclose(preset.spacing, planned["spacing"], rtol=1e-3):
        # its own preprocessed folder, as the planner's holds data of another spacing
        configuration["data_identifier"] = f"{name}_{preset.configuration}"
        configuration["spacing"] = list(preset.spacing)
        ratio = np.divide(planned["spacing"], preset.spacing)
        configuration["median_image_size_in_voxels"] = (planned["median_image_size_in_voxels"] * ratio).tolist()
    plans |= {"plans_name": name, "preset": preset.name, "configurations": {preset.configuration: configuration}}

    written = PlannedConfiguration(plans, dataset_json, preset.configuration)
    applied = AppliedPreset(preset, path, written, planned)
    with without_data():
        applied.build_network()
    write_json(plans, path)
    return applied
