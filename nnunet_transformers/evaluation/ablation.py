"""Does a part of a trained network do anything: the fold's validation with that part replaced by the identity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._atomic import write_json
from .._reading import read_json
from ..architectures import SegmentationNetwork, class_path, get_network, list_networks
from ..architectures.without import class_without
from ..plans.builder import find_trainer
from ..plans.gate import check_plan
from ..plans.plan_files import check_new_plans, dataset_folder, load_plans
from ..plans.planned import label_names
from ..weights.nnunet_checkpoint import FINAL, reading_plain_types
from .results import Evaluation
from .statistics import nan_mean, or_null

# in the fold's folder; and the entry of a plan that was written to train without a part
FOLDER, MARKER = "ablation", "without"
# in that folder, the network with all its parts
WHOLE = "whole"


@dataclass(frozen=True)
class Ablation:
    """Validation Dice of a trained network, whole and without a part.

    Attributes:
        part: what was removed.
        labels: names of the labels.
        whole, without: mean Dice over the validation cases, by label; NaN where undefined in all.
        folder: folder of the predictions without the part, with nnU-Net's summary.json.
    """

    part: str
    labels: Sequence[str]
    whole: Sequence[float]
    without: Sequence[float]
    folder: Path


@dataclass(frozen=True)
class TrainedFold:
    """A fold of a trained model by the names in its folder.

    Attributes:
        folder: ``.../TRAINER__PLANS__CONFIGURATION/fold_X``.
        plans, dataset_json: contents of the model's files.

    Raises:
        FileNotFoundError: if a file of the model is missing.
        ValueError: if this is not the folder of a fold, or its plan names other code.
    """

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, trust: bool = False) -> TrainedFold:
        """Read a fold's plan and dataset.json; ``trust`` takes a plan that names other code."""
        folder = folder.resolve()
        if len(folder.parent.name.split("__")) != 3 or not folder.name.startswith("fold_"):
            raise ValueError(f"{folder} is no folder of a fold, .../TRAINER__PLANS__CONFIGURATION/fold_X")
        contents = []
        for name in ("plans.json", "dataset.json"):
            if not (path := folder.parent / name).is_file():
                raise FileNotFoundError(f"{path} is missing; is {folder} the folder of a trained fold?")
            contents.append(read_json(path))
        if not trust:
            check_plan(contents[0], str(folder.parent / "plans.json"))
        return cls(folder, *contents)

    @property
    def names(self) -> list[str]:
        """Names of trainer, plan and configuration."""
        return self.folder.parent.name.split("__")

    @property
    def fold(self) -> int | str:
        """Its number, or ``all``."""
        number = self.folder.name.removeprefix("fold_")
        return int(number) if number.isdigit() else number

    def load(
        self, device: torch.device, checkpoint: str = FINAL, trust: bool = False
    ) -> tuple[Any, SegmentationNetwork]:
        """Build the trainer with the trained network; ``trust`` unpickles the checkpoint if it has to be.

        Returns:
            the trainer, and its network without wrappers.

        Raises:
            ValueError: if it is not a network of this package's interface.
        """
        trainer_name, _, configuration = self.names
        trainer = find_trainer(trainer_name)(
            plans={**deepcopy(self.plans), "continue_training": True},
            configuration=configuration,
            fold=self.fold,
            dataset_json=deepcopy(self.dataset_json),
            device=device,
        )
        trainer.initialize()
        with nullcontext() if trust else reading_plain_types():
            trainer.load_checkpoint(str(self.folder / checkpoint))
        network = getattr(trainer, "plain_network", trainer.network)
        if not isinstance(network, SegmentationNetwork):
            raise ValueError(
                f"{trainer_name} trains {type(network).__name__}, which does not state what can be removed; only "
                f"networks of {SegmentationNetwork.__module__.rpartition('.')[0]} do"
            )
        return trainer, network


def ablate(
    folder: Path,
    parts: Sequence[str] = (),
    device: torch.device | None = None,
    checkpoint: str = FINAL,
    trust: bool = False,
) -> list[Ablation]:
    """Validate a trained fold without parts of its network, one at a time.

    nnU-Net predicts the fold's validation cases as after training. ``ablation/PART/validation`` in the fold's folder
    gets the predictions with their summary.json, and ``ablation/ablation.json`` the Dice. The fold's own validation is
    that of ``checkpoint_final.pth``; another checkpoint is validated whole too, in ``ablation/whole``.

    Args:
        folder: folder of a fold that was validated.
        parts: what to remove; by default all that the network states.
        device: device to predict on, the CPU by default.
        checkpoint: its file name.
        trust: take a plan that names other code.

    Raises:
        FileNotFoundError: if the fold was not validated, or a file of the model or the preprocessed data is missing.
        ValueError: if the network has no such part.
    """
    trained = TrainedFold.read(folder, trust)
    summary = trained.folder / "validation" / "summary.json"
    if checkpoint == FINAL and not summary.is_file():
        raise FileNotFoundError(f"{summary} is missing: finish training, or run nnUNetv2_train ... --val")
    device = device or torch.device("cpu")
    names = label_names(trained.dataset_json)
    trainer, network = trained.load(device, checkpoint, trust)
    chosen = [*(parts or network.parts)]
    if unknown := [part for part in chosen if part not in network.parts]:
        raise ValueError(f"{type(network).__name__} has no {unknown[0]!r}, only {', '.join(network.parts) or 'none'}")
    if checkpoint == FINAL:
        whole = Evaluation.load(summary)
    else:
        whole = Evaluation.load(_validate(trainer, trained.folder / FOLDER / WHOLE) / "summary.json")
        trainer = None
    ablations = []
    for part in chosen:
        if trainer is None:
            trainer, network = trained.load(device, checkpoint, trust)
        network.remove(part)
        validated = _validate(trainer, trained.folder / FOLDER / part)
        trainer = None  # what was removed stays so
        without = Evaluation.load(validated / "summary.json")
        before, after = (nan_mean(evaluation.of("Dice")).tolist() for evaluation in (whole, without))
        ablations.append(Ablation(part, [names.get(key, key) for key in whole.labels], before, after, validated))
    write_json(
        {
            a.part: {
                label: {"whole": or_null(before), "without": or_null(after)}
                for label, before, after in zip(a.labels, a.whole, a.without, strict=True)
            }
            for a in ablations
        },
        trained.folder / FOLDER / "ablation.json",
    )
    return ablations


def _validate(trainer: Any, folder: Path) -> Path:
    """Validate a trainer's network, with its predictions in a folder of its own; return that of nnU-Net in it."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer.output_folder = str(folder)
    # nnU-Net would replace the segmentations that the next stage of a cascade is trained on
    trainer.configuration_manager.configuration.pop("next_stage", None)
    trainer.perform_actual_validation()
    return folder / "validation"


def write_plan_without(folder: Path, part: str, force: bool = False) -> str:
    """Write a plan of the fold's dataset whose network lacks a part, for training it so.

    Args:
        folder: folder of a trained fold.
        part: what the network shall lack.
        force: replace a plan that this function wrote.

    Returns:
        the command that trains it.

    Raises:
        ValueError: if the plan's network is not registered, or cannot do without the part.
        FileNotFoundError: if the plan is not in nnU-Net's preprocessed folder.
        FileExistsError: if there is such a plan.
    """
    trained = TrainedFold.read(folder, trust=True)  # builds nothing
    trainer, original, configuration = trained.names
    dataset = dataset_folder(trained.plans["dataset_name"])
    name = f"{original}_without_{part}"
    path = check_new_plans(dataset, name, original, MARKER, force)
    plans = deepcopy(load_plans(dataset, original))
    entries = plans["configurations"][configuration]
    if "architecture" not in entries:
        raise ValueError(f"{original} has no network in {configuration}, which inherits it; train one of its own")
    planned = entries["architecture"]["network_class_name"]
    network_class = next((c for n in list_networks() if class_path(c := get_network(n).network_class) == planned), None)
    if network_class is None or part not in network_class.may_be_removed():
        raise ValueError(f"{planned} cannot be built without {part!r}")
    entries["architecture"]["network_class_name"] = class_path(class_without(network_class, part))
    plans |= {"plans_name": name, MARKER: part, "configurations": {configuration: entries}}
    write_json(plans, path)
    return f"nnUNetv2_train {trained.plans['dataset_name']} {configuration} {trained.fold} -p {name} -tr {trainer}"
