"""Export a trained model under the name of nnU-Net's trainer, for prediction with nnU-Net's commands."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._atomic import new_folder
from .._reading import read_json
from ..plans.builder import builds_planned_network
from ..plans.gate import check_plan
from ..weights import save_checkpoint
from ..weights.nnunet_checkpoint import FINAL, read_checkpoint
from .shareable import copy_shareable, without_paths
from .trained import find_folds, model_parts

STOCK = "nnUNetTrainer"
BESIDE = ("plans.json", "dataset.json", "dataset_fingerprint.json")
# files of a fold that nnUNetv2_export_model_to_zip exports, but debug.json: it names the machine and its folders
OF_FOLD = ("progress.png", "validation/summary.json")
KEPT = ("network_weights", "init_args", "current_epoch", "inference_allowed_mirroring_axes")


def export_stock(
    source: Path, output: Path, folds: Sequence[str] = (), checkpoint: str = FINAL, trust: bool = False
) -> tuple[Path, str]:
    """Copy a model with nnU-Net's trainer in place of its own, so that inference needs only the plan's network class.

    Args:
        source: nnU-Net's folder of the model, .../TRAINER__PLANS__CONFIGURATION.
        output: folder of results to write to, such as nnUNet_results/DATASET.
        folds: folds to copy; by default all finished ones.
        checkpoint: file name of the checkpoints.
        trust: unpickle checkpoints that cannot be read otherwise, and copy a plan that names any code.

    Returns:
        the new folder of the model, and the import path of the network that it needs.

    Raises:
        FileExistsError: if the new folder exists.
        FileNotFoundError: if a file of the model is missing.
        ValueError: if the trainer builds a network of its own, the plan names other code than networks, or a
            checkpoint cannot be read.
    """
    source = source.resolve()
    names = find_folds(source, folds, checkpoint)
    trainer, plans, configuration = model_parts(source)
    target = output / f"{STOCK}__{plans}__{configuration}"
    if target.exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder")
    if not builds_planned_network(trainer):
        raise ValueError(
            f"{trainer} builds a network of its own, which nnUNetTrainer does not; share the model as a package"
        )
    if not trust:
        check_plan(read_json(source / "plans.json"), str(source / "plans.json"))
    with new_folder(target) as partial:
        for name in names:
            (partial / f"fold_{name}").mkdir(parents=True)
            content, _ = read_checkpoint(source / f"fold_{name}" / checkpoint, trust)
            kept = {key: content[key] for key in KEPT if key in content}
            described = {key: without_paths(kept["init_args"][key]) for key in ("plans", "dataset_json")}
            kept["init_args"] = {**kept["init_args"], **described}
            save_checkpoint({**kept, "trainer_name": STOCK}, partial / f"fold_{name}" / checkpoint)
        for name in (*BESIDE, *(f"fold_{fold}/{file}" for fold in names for file in OF_FOLD)):
            if (source / name).is_file():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copyfile if name.endswith(".png") else copy_shareable
                copy(source / name, partial / name)
    manager = PlansManager(read_json(target / "plans.json"))
    return target, manager.get_configuration(configuration).network_arch_class_name
