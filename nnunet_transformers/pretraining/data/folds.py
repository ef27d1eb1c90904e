"""Validation cases of the folds of a dataset, as nnU-Net's training finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.crossval_split import generate_crossval_split

from ..._reading import reading
from .cases import find_cases
from .dataset_json import DESCRIPTION, read_description
from .formats import strip_ending

FOLDS = 5


def validation_cases(source: Path, fold: int) -> list[str]:
    """Return the validation cases of a fold of nnU-Net's cross-validation.

    Args:
        source: dataset in nnU-Net's raw layout.
        fold: number of the fold in ``splits_final.json`` of the preprocessed folder; without that file, in nnU-Net's
            default split.

    Raises:
        ValueError: if there is no such fold, ``source`` has no labels or too few, or a case has no image.
    """
    names = {case.name for case in find_cases(source).cases}
    folds = _own_folds(source) or _default_folds(source, names)
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}; folds are 0 to {len(folds) - 1}")
    absent = sorted(set(folds[fold]["val"]) - names)
    if absent:
        raise ValueError(f"fold {fold} validates on {absent[0]}, of which {source} has no image")
    return list(folds[fold]["val"])


def _own_folds(source: Path) -> Sequence[dict[str, list[str]]]:
    """Return the folds of ``splits_final.json``; none without that file."""
    if not nnUNet_preprocessed.get():
        return ()
    path = Path(nnUNet_preprocessed) / source.resolve().name / "splits_final.json"
    if not path.is_file():
        return ()
    with reading(path, "a file of folds"):
        return [{"val": list(fold["val"])} for fold in json.loads(path.read_text())]


def _default_folds(source: Path, names: set[str]) -> Sequence[dict[str, list[str]]]:
    labelled = sorted(names & _labelled(source))
    if not labelled:
        raise ValueError(
            f"{source} has no labels in labelsTr or {DESCRIPTION} and therefore no folds; leave --fold out"
        )
    if len(labelled) < FOLDS:
        raise ValueError(
            f"{source} has {len(labelled)} labelled images, too few for nnU-Net's {FOLDS} folds: write "
            "splits_final.json into the dataset's folder in nnUNet_preprocessed, or leave --fold out"
        )
    folds: Sequence[dict[str, list[str]]] = generate_crossval_split(labelled, seed=12345, n_splits=FOLDS)
    return folds


def _labelled(source: Path) -> set[str]:
    """Return the cases that have a label map: those of the table in ``dataset.json``, or of ``labelsTr``."""
    if (source / DESCRIPTION).is_file() and (listed := read_description(source).training) is not None:
        return {strip_ending(Path(name).name) for name in listed}
    folder = source / "labelsTr"
    return {strip_ending(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
