"""Images of a source folder: of a dataset, or plain files; what is no image, or not to be used, with the reason."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...formats.dicom_series import find_series, is_dicom
from ...formats.walk import walk
from .dataset_json import DESCRIPTION, DatasetDescription, read_description
from .formats import FILE_ENDINGS, ending_of, strip_ending
from .manifest import MANIFEST
from .names import assign_names

# folders of label maps: what would be stored as an image if its files were not left alone
LABELS = re.compile(r"(labels?|masks?|segmentations?|seg|gt)([-_ ]?(tr|ts|val|train|test|\d+))?", re.IGNORECASE)
DATASET = re.compile(r"(Dataset\d{3}|Task\d+)_.+")
TRAINING, TEST = "imagesTr", "imagesTs"


@dataclass(frozen=True)
class ImageCase:
    """An image to prepare.

    Attributes:
        name: name of the prepared image.
        files: one file, one per channel, or those of a DICOM series in the order of its slices.
        key: path of the first file in the source, or UID of the DICOM series; identifies the image in later runs.
        dicom: whether the files are DICOM.
    """

    name: str
    files: tuple[str, ...]
    key: str = ""
    dicom: bool = False

    @property
    def bytes(self) -> int:
        """Size of the files; 0 for missing ones."""
        return sum(os.stat(file).st_size for file in self.files if os.path.isfile(file))


@dataclass(frozen=True)
class Source:
    """Images of a folder.

    Attributes:
        cases: images to prepare.
        channels: channel names, None if they are not stated.
        ignored: reason by path of every other file.
        reader: nnU-Net's reader that the dataset asks for.
    """

    cases: list[ImageCase]
    channels: list[str] | None = None
    ignored: dict[str, str] = field(default_factory=dict)
    reader: str | None = None


def find_cases(folder: Path, include_test: bool = False, known: Mapping[str, str] | None = None) -> Source:
    """Find the images of a folder: a dataset with ``dataset.json``, or plain files, in subfolders too.

    Args:
        folder: source folder. Of a dataset the training images are taken (``imagesTr``, or the lists of
            ``dataset.json``); of plain files those outside of folders of label maps.
        include_test: take a dataset's test images too.
        known: names that images have had in earlier runs, by their keys.

    Raises:
        ValueError: if there is no image, the folder holds datasets or is one without ``dataset.json``, that is damaged,
            or a name leads out of a folder.
        FileNotFoundError: if there is no such folder.
    """
    check_source(folder)
    files = dict(walk(folder, _left_out))
    ignored = {path: reason for path, reason in files.items() if reason}
    paths = [path for path, reason in files.items() if not reason]
    dicom: set[str] = set()
    if (folder / DESCRIPTION).is_file():
        description = read_description(folder)
        wanted, others = _dataset(folder, description, paths, include_test)
        channels, reader = description.channels, description.reader
    else:
        wanted, others, dicom = _plain(folder, paths)
        channels = reader = None
    if not wanted:
        raise ValueError(
            f"no image in {folder}: it has neither {TRAINING} with the files that {DESCRIPTION} describes nor DICOM "
            f"files nor files ending in {', '.join(FILE_ENDINGS)}"
        )
    names = assign_names({key: name for key, (name, _) in wanted.items()}, known or {})
    cases = [ImageCase(names[key], files, key, key in dicom) for key, (_, files) in wanted.items()]
    return Source(cases, channels, {**ignored, **others}, reader)


def check_source(folder: Path) -> None:
    """Refuse folders of which label maps would be stored as images, and damaged descriptions; reads no other file.

    Raises:
        ValueError, FileNotFoundError: as ``find_cases``.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / DESCRIPTION).is_file():
        read_description(folder)
        return
    inner = sorted(path.name for path in folder.iterdir() if path.is_dir())
    datasets = [name for name in inner if (folder / name / DESCRIPTION).is_file() or DATASET.fullmatch(name)]
    if datasets:
        more = "" if len(datasets) == 1 else f" and {len(datasets) - 1} more"
        raise ValueError(f"{folder} holds datasets ({datasets[0]}{more}): give the folder of one of them")
    if TRAINING in inner:
        raise ValueError(
            f"{folder} is a dataset without {DESCRIPTION}: add that file, or give {folder / TRAINING} for its images"
        )


def _left_out(path: str) -> str:
    return "a prepared folder" if os.path.isfile(os.path.join(path, MANIFEST)) else ""


Wanted = dict[str, tuple[str, tuple[str, ...]]]


def _dataset(
    folder: Path, description: DatasetDescription, paths: Sequence[str], include_test: bool
) -> tuple[Wanted, dict[str, str]]:
    """Return the wanted name and files of each image of a dataset by its key, and the other files with reasons."""
    if description.training is not None:
        listed = {name: list(files) for name, files in description.training.items()}
        if include_test:
            listed |= {file: [file] for file in description.test}
        wanted = {
            _relative(files[0], folder): (strip_ending(os.path.basename(name)), tuple(files))
            for name, files in listed.items()
        }
    else:
        folders = (TRAINING, TEST) if include_test else (TRAINING,)
        wanted = _channel_files(folder, [p for p in paths if os.path.dirname(p) in folders], description.file_ending)
    used = {_relative(file, folder) for _, files in wanted.values() for file in files}
    return wanted, {path: _part(path) for path in paths if path not in used}


def _channel_files(folder: Path, paths: Iterable[str], ending: str | None) -> Wanted:
    """Group files CASE_0000.ENDING by case; without an ending in ``dataset.json`` by those of all known formats."""
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in paths:
        found = ending_of(path) if ending is None else ending
        channel = re.fullmatch(rf"(.+)_\d{{4}}{re.escape(found)}", os.path.basename(path)) if found else None
        if channel:
            grouped[os.path.dirname(path), channel[1]].append(path)
    return {files[0]: (name, tuple(str(folder / f) for f in files)) for (_, name), files in grouped.items()}


def _part(path: str) -> str:
    """Why a file of a dataset is not used."""
    first = path.split("/", 1)[0]
    if LABELS.fullmatch(first):
        return "a label map"
    if first == TEST:
        return "a test image, which --include-test takes"
    return "not among the training images" if ending_of(path) else "no image"


def _plain(folder: Path, paths: Sequence[str]) -> tuple[Wanted, dict[str, str], set[str]]:
    """Return the wanted name and files of each image by its key, other files with reasons, and the keys of DICOM."""
    wanted: Wanted = {}
    others, dicom = {}, []
    for path in paths:
        if any(LABELS.fullmatch(part) for part in path.split("/")[:-1]):
            others[path] = "in a folder of label maps by its name"
        elif path.lower().endswith(FILE_ENDINGS):
            wanted[path] = (strip_ending(path).replace("/", "__"), (str(folder / path),))
        elif _is_dicom(folder / path):
            dicom.append(path)
        else:
            suffix = Path(path).suffix.lower()
            others[path] = f"no image ({suffix})" if suffix else "no image"
    series, unusable = find_series(folder, dicom)
    return {**wanted, **series}, {**others, **unusable}, set(series)


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom(path)
    except OSError:
        return False


def _relative(file: str, folder: Path) -> str:
    """Return the path of a file in the source with forward slashes; of a file elsewhere its absolute path."""
    path = os.path.relpath(file, os.path.abspath(folder))
    return file if path.startswith("..") else path.replace(os.sep, "/")
