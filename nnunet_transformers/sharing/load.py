"""Load a package as nnU-Net's predictors: files are verified, plans may name only networks, nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

from .._reading import read_json
from ..formats.sockets import Interface, read_interfaces
from ..inference.predictor import BatchedPredictor
from ..plans.gate import check_plan
from ..plans.memory import pass_peak_bytes
from ..plans.planned import PlannedConfiguration, channel_names
from .contents import SOCKETS
from .description import Description, Model
from .manifest import verify
from .weights_file import load_weights

# code and workspaces of PyTorch's libraries, which the first pass brings into memory (benchmarks/predict_ct.py needed)
LIBRARIES = 2**26


@dataclass(frozen=True)
class LoadedModel:
    """A model of a package, ready to predict.

    Attributes:
        model: description of the model.
        predictor: predictor with its folds, whose passes are nnU-Net's.
        fingerprint: nnU-Net's fingerprint of the training dataset.
        previous: model of the previous stage in a cascade.
    """

    model: Model
    predictor: BatchedPredictor
    fingerprint: Mapping[str, Any]
    previous: LoadedModel | None

    @property
    def file_ending(self) -> str:
        """File ending of images and segmentations."""
        return self.predictor.dataset_json["file_ending"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels of the network's input, those of a previous stage's labels included, and voxels of its patch."""
        channels = len(channel_names(self.predictor.dataset_json))
        channels += 0 if self.previous is None else len(self.predictor.label_manager.foreground_labels)
        return channels, *map(int, self.predictor.configuration_manager.patch_size)

    @cached_property
    def pass_bytes(self) -> int:
        """Memory of the passes of a patch on a CPU in bytes, with what PyTorch's libraries take at the first one."""
        network = self.predictor.network
        plain = network._orig_mod if isinstance(network, OptimizedModule) else network
        # two more of a pass's results: their mean, and one that is flipped back
        logits = 4 * self.predictor.label_manager.num_segmentation_heads * prod(self.input_shape[1:])
        try:
            counted = pass_peak_bytes(plain.eval(), (1, *self.input_shape))
        except Exception:  # a network whose code asks for values cannot be run without data, but can predict
            counted = logits
        return counted + 2 * logits + LIBRARIES


def load_package(
    folder: Path,
    device: torch.device,
    step_size: float = 0.5,
    use_mirroring: bool = True,
    folds: Sequence[str] = (),
    sha256: str | None = None,
) -> list[LoadedModel]:
    """Verify a package and load its models.

    Args:
        folder: folder of the package.
        device: device to predict on.
        step_size: step of the sliding window as a share of the patch.
        use_mirroring: average over flips along the axes that the trainer allows.
        folds: folds of each model to use; all by default.
        sha256: SHA-256 of the manifest, if its source states it.

    Raises:
        FileNotFoundError: if there is no package.
        ValueError: if a file was changed, is missing or does not belong there, a fold is unknown, or the weights do not
            fit the plan.
    """
    verify(folder, sha256)
    arguments = {"device": device, "tile_step_size": step_size, "use_mirroring": use_mirroring}
    return [_load(folder, model, arguments, folds) for model in Description.load(folder).models]


def package_interfaces(folder: Path, models: Sequence[LoadedModel]) -> list[Interface]:
    """Return the interfaces of a loaded package that is an algorithm on grand-challenge.org, none of another one."""
    path = folder / SOCKETS
    return read_interfaces(path, channel_names(models[0].predictor.dataset_json)) if path.is_file() else []


def _load(folder: Path, model: Model, arguments: Mapping[str, Any], folds: Sequence[str]) -> LoadedModel:
    unknown = [fold for fold in folds if fold not in model.folds]
    if unknown:
        raise ValueError(
            f"{folder} has no fold {', '.join(unknown)} of {model.folder}; it has {', '.join(model.folds)}"
        )
    files = folder / model.folder
    plans, dataset_json = read_json(files / "plans.json"), read_json(files / "dataset.json")
    network = build_network(plans, model, dataset_json)
    parameters = [load_weights(folder / model.weights_file(fold)) for fold in folds or model.folds]
    for fold, weights in zip(folds or model.folds, parameters, strict=True):
        check_weights(network, weights, model.weights_file(fold))
    with redirect_stdout(StringIO()):  # nnU-Net prints that perform_everything_on_device has no effect on a CPU
        # passes of one patch give the same logits as nnU-Net's to the last bit
        predictor = BatchedPredictor(batch_size=1, allow_tqdm=False, **arguments)
    manager = PlansManager(plans)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration(model.configuration),
        parameters,
        dataset_json,
        model.trainer,
        model.mirroring_axes,
    )
    previous = None if model.previous is None else _load(folder, model.previous, arguments, folds)
    return LoadedModel(model, predictor, read_json(files / "dataset_fingerprint.json"), previous)


def build_network(plans: Mapping[str, Any], model: Model, dataset_json: Mapping[str, Any]) -> nn.Module:
    """Build the network of a model for inference.

    Raises:
        ValueError: if the plan is damaged, names other code than networks, or its trainer is not found.
    """
    try:
        check_plan(plans, f"the plan of {model.folder}", "a package has no other code")
        return PlannedConfiguration(plans, dataset_json, model.configuration).build_network(model.builder)
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"the plan of {model.folder} describes no network that can be built here: {error!r}"
        ) from error


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raise ValueError if weights do not load strictly into a network; ``name`` is that of their file."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{name} does not fit the plan's network: {error}") from error
