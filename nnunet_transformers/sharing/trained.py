"""Read trained models from nnU-Net's results folder or zip, without unpickling wherever possible."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .._paths import inside
from .._reading import RefusedError, reading
from ..weights.nnunet_checkpoint import FINAL, read_checkpoint

# files of an exported zip that a package is made from
WANTED = ("plans.json", "dataset.json", "dataset_fingerprint.json", "summary.json")
# weights hardly shrink by compression; small archives, mostly of JSON, may by more
MAX_EXPANSION = 20
SMALL = 1_000_000
MAX_MEMBERS = 100_000


@dataclass(frozen=True)
class TrainedFold:
    """Content of an nnU-Net checkpoint that inference needs.

    Attributes:
        name: name of the fold, a number or "all".
        weights: weights by name.
        trainer: class name of the trainer.
        configuration: configuration of the plan.
        mirroring_axes: axes that inference may flip, None for none.
        epochs: number of trained epochs.
        unpickled: whether the file had to be unpickled.
    """

    name: str
    weights: dict[str, torch.Tensor]
    trainer: str
    configuration: str
    mirroring_axes: tuple[int, ...] | None
    epochs: int
    unpickled: bool


def read_fold(folder: Path, fold: str, checkpoint: str = FINAL, trust: bool = False) -> TrainedFold:
    """Read a fold of a trained model.

    Args:
        folder: nnU-Net's folder of the model.
        fold: name of the fold.
        checkpoint: file name of the checkpoint.
        trust: unpickle the checkpoint if it cannot be read otherwise.

    Raises:
        FileNotFoundError, ValueError: as ``read_checkpoint``.
    """
    content, unpickled = read_checkpoint(folder / f"fold_{fold}" / checkpoint, trust)
    axes = content.get("inference_allowed_mirroring_axes")
    return TrainedFold(
        fold,
        dict(content["network_weights"]),
        str(content["trainer_name"]),
        str(content["init_args"]["configuration"]),
        None if axes is None else tuple(int(axis) for axis in axes),
        int(content.get("current_epoch", 0)),
        unpickled,
    )


def model_parts(folder: Path) -> tuple[str, str, str]:
    """Return trainer, plans and configuration of a model's folder.

    Raises:
        ValueError: if the folder has another name than nnU-Net gives it.
    """
    parts = folder.name.split("__")
    if len(parts) != 3:
        raise ValueError(f"{folder}: a model's folder is named TRAINER__PLANS__CONFIGURATION, as nnU-Net names it")
    return parts[0], parts[1], parts[2]


def find_folds(folder: Path, wanted: Sequence[str] = (), checkpoint: str = FINAL) -> list[str]:
    """Return the requested folds, or all finished ones; "all" only if there is no other, as in nnU-Net.

    A fold that was renamed, such as ``fold_0_old``, is taken only on request.

    Raises:
        FileNotFoundError: if the folder is not that of a trained model, or a requested fold or every fold is
            unfinished.
    """
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; specify a model's folder in nnUNet_results, .../TRAINER__PLANS__CONFIGURATION"
            )
    finished = [path.parent.name.removeprefix("fold_") for path in sorted(folder.glob(f"fold_*/{checkpoint}"))]
    for fold in wanted:
        if fold not in finished:
            raise FileNotFoundError(
                f"fold {fold} of {folder} has no {checkpoint}; finished: {', '.join(finished) or 'none'}"
            )
    if not finished:
        raise FileNotFoundError(f"no fold of {folder} has a {checkpoint}; finish training with nnUNetv2_train")
    return list(wanted) or [fold for fold in finished if fold.isdigit()] or finished


def extract_models(archive: Path, target: Path, wanted: Iterable[str] = (), checkpoint: str = FINAL) -> list[Path]:
    """Extract the files that a package needs, and no others, from a zip of nnUNetv2_export_model_to_zip.

    Args:
        archive: the zip.
        target: folder to write to.
        wanted: names of models in the zip, TRAINER__PLANS__CONFIGURATION; by default its only one.
        checkpoint: file name of the checkpoints.

    Returns:
        the folders of the models.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a zip, claims far more than it holds or than the disk has, holds paths that lead
            outside, or lacks a requested model.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"no such file: {archive}")
    with reading(archive, "a zip of nnUNetv2_export_model_to_zip"), zipfile.ZipFile(archive) as opened:
        _check_claims(opened.infolist(), archive, target)
        for member in opened.infolist():
            try:
                path = inside(target, member.filename)
            except ValueError as error:
                raise RefusedError(f"{archive} holds {member.filename!r}, which leads outside; refused") from error
            if path.name in (*WANTED, checkpoint) and not member.is_dir():
                opened.extract(member, target)
    models = {path.parent.name: path.parent for path in sorted(target.rglob("plans.json"))}
    names = list(wanted)
    if not names and len(models) != 1:
        found = ", ".join(models) or "no model"
        raise ValueError(f"{archive} holds {found}; specify the model to package after --from-zip {archive.name}")
    unknown = [name for name in names if name not in models]
    if unknown:
        raise ValueError(f"{archive} has no {', '.join(unknown)}; it has {', '.join(models) or 'no model'}")
    return [models[name] for name in names] or list(models.values())


def _check_claims(members: Sequence[zipfile.ZipInfo], archive: Path, target: Path) -> None:
    """Check the sizes in the directory of a zip, by which zipfile reads no more than they state."""
    claimed, held, free = sum(m.file_size for m in members), archive.stat().st_size, shutil.disk_usage(target).free
    if len(members) > MAX_MEMBERS or claimed > MAX_EXPANSION * max(held, SMALL):
        raise RefusedError(
            f"{archive} claims {len(members)} files of {claimed / 1e9:.1f} GB in {held / 1e9:.3f} GB, which no model "
            "has; refused"
        )
    if claimed > free:
        raise RefusedError(
            f"{archive} unpacks to {claimed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {target}; free some space "
            "or set TMPDIR"
        )
