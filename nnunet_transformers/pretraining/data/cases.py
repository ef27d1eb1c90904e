"""Images of a source folder, in nnU-Net's raw layout or plain files, and the folds of a dataset."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.crossval_split import generate_crossval_split

from ..._paths import inside
from ...plans.planned import channel_names

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageCase:
    """An image to prepare.

    Attributes:
        name: name of the prepared image.
        files: one file, or one per channel.
    """

    name: str
    files: tuple[str, ...]


def strip_ending(name: str) -> str:
    """Remove the ending of the file format from a name; other dots belong to the name.

    >>> strip_ending("patient.1.nii.gz")
    'patient.1'
    """
    ending = next((e for e in FILE_ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def find_cases(folder: Path) -> tuple[list[ImageCase], list[str] | None]:
    """Find the images of a folder in nnU-Net's raw layout (``imagesTr`` and ``imagesTs``) or of plain files.

    Args:
        folder: source folder; plain files are searched in its subfolders too.

    Returns:
        the images, and the channel names if ``dataset.json`` states them.

    Raises:
        ValueError: if there is no image, two images would have the same name, or a name would lead out of a folder.
    """
    description = folder / "dataset.json"
    channels = None
    if description.is_file():
        dataset = json.loads(description.read_text())
        channels = channel_names(dataset)
        cases = _listed(folder, dataset["dataset"]) if "dataset" in dataset else _raw(folder, dataset["file_ending"])
    else:
        files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(FILE_ENDINGS))
        cases = [ImageCase(strip_ending(str(p.relative_to(folder)).replace("/", "__")), (str(p),)) for p in files]
    if not cases:
        raise ValueError(
            f"no image in {folder}: it has neither imagesTr with the files that dataset.json describes nor files "
            f"ending in {', '.join(FILE_ENDINGS)}"
        )
    twice = [name for name, number in Counter(case.name for case in cases).items() if number > 1]
    if twice:
        raise ValueError(f"{folder} has more than one image named {', '.join(twice[:3])}; rename or remove the others")
    return cases, channels


def _raw(folder: Path, ending: str) -> list[ImageCase]:
    files = defaultdict(list)
    for images in (folder / "imagesTr", folder / "imagesTs"):
        for file in sorted(images.glob(f"*{ending}")):
            channel = re.search(rf"_\d{{4}}{re.escape(ending)}$", file.name)
            if channel:
                files[(images, file.name[: channel.start()])].append(str(file))
    return [ImageCase(name, tuple(paths)) for (_, name), paths in files.items()]


def _listed(folder: Path, dataset: dict[str, dict]) -> list[ImageCase]:
    """Return the images that dataset.json lists by path, as nnU-Net allows; the images may lie anywhere."""
    for name in dataset:
        inside(folder, name)
    return [ImageCase(name, tuple(str(folder / image) for image in entry["images"])) for name, entry in dataset.items()]


def validation_cases(source: Path, fold: int) -> list[str]:
    """Return the validation cases of a fold of nnU-Net's cross-validation.

    Args:
        source: dataset in nnU-Net's raw layout.
        fold: number of the fold in ``splits_final.json`` of the preprocessed folder; without that file, in nnU-Net's
            default split.

    Raises:
        ValueError: if there is no such fold, ``source`` has no labels, or a case has no image.
    """
    cases, _ = find_cases(source)
    names = {case.name for case in cases}
    if not (source / "labelsTr").is_dir():
        raise ValueError(f"{source} has no labelsTr and therefore no folds; leave --fold out")
    labelled = sorted(names & {strip_ending(p.name) for p in (source / "labelsTr").iterdir()})
    folds: Sequence[dict] = generate_crossval_split(labelled, seed=12345, n_splits=5)
    if nnUNet_preprocessed.is_set():
        splits = Path(nnUNet_preprocessed) / source.resolve().name / "splits_final.json"
        folds = json.loads(splits.read_text()) if splits.is_file() else folds
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}; folds are 0 to {len(folds) - 1}")
    absent = sorted(set(folds[fold]["val"]) - names)
    if absent:
        raise ValueError(f"fold {fold} validates on {absent[0]}, of which {source} has no image")
    return list(folds[fold]["val"])
