"""Find the cases of a folder by nnU-Net's file names, and say which files are none."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES
from tqdm import tqdm

from .._orientation import PICTURES, read_header
from .._processes import available_cores
from .._reading import reading
from .._voxels import check_complete
from ..formats.readable import encodable
from ..plans.planned import channel_names

IMAGE_ENDINGS = sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}, key=len)

# files from which checking them shows a bar
SHOWN_FROM = 20


@dataclass(frozen=True)
class FoundCases:
    """Content of a folder.

    Attributes:
        cases: files of each case, by its name.
        problems: files that belong to no case, with the reason.
    """

    cases: dict[str, list[Path]]
    problems: dict[str, str]


def find_cases(folder: Path, file_ending: str) -> FoundCases:
    """Find the cases of a folder by nnU-Net's file names, CASE_0000.ending.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    cases: dict[str, list[Path]] = {}
    problems = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if not path.name.endswith(file_ending):
            if any(path.name.lower().endswith(ending) for ending in IMAGE_ENDINGS):
                problems[path.name] = f"the model reads {file_ending} files; convert the image"
            continue
        if (name := encodable(path.name)) != path.name:  # on which SimpleITK ends the process
            problems[name] = "its name is not UTF-8; rename it"
            continue
        stem = path.name.removesuffix(file_ending)
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            problems[path.name] = f"no channel number in its name; rename it to {stem}_0000{file_ending}"
            continue
        if not path.is_file():
            # as data sets under version control have, whose content is elsewhere
            problems[path.name] = "a link to nothing, or no regular file; get the file that it stands for"
            continue
        cases.setdefault(match[1], []).append(path)
    if not cases and not problems:
        raise ValueError(f"no image in {folder}; the model reads CASE_0000{file_ending}")
    return FoundCases(cases, problems)


def check_axes(files: Iterable[str | Path], most: int = 3) -> None:
    """Check that files are not such that nnU-Net's readers of volumes take an axis for another, or cannot write.

    They take the first axis of a vector image for its channels; 4D images they read as channels, but segmentations of
    these they cannot write. Pictures, whose reader knows colours, are left to it, and what SimpleITK does not read.

    Args:
        files: one file, or one per channel.
        most: number of axes that a file may have.

    Raises:
        ValueError: if a file has several values per voxel or too many axes.
    """
    for path in map(Path, files):
        if path.name.lower().endswith(PICTURES) or (header := read_header(path)) is None:
            continue
        count, axes = header.GetNumberOfComponents(), header.GetDimension()
        if count > 1 or axes > most:
            has = f"{count} values per voxel" if count > 1 else f"{axes} axes"
            raise ValueError(
                f"{path.name} has {has}; write each channel to a file of its own, CASE_0000, CASE_0001 ..."
            )


def check_whole(files: Sequence[Path]) -> None:
    """Check that files have all their voxels, several at a time, with a bar where there are many.

    Raises:
        ValueError: if one is truncated or damaged.
    """
    pool = ThreadPoolExecutor(available_cores())  # decompression runs in parallel in threads
    try:
        checked = pool.map(_check_whole, files)
        deque(tqdm(checked, "checking", len(files), leave=False, disable=len(files) < SHOWN_FROM), maxlen=0)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_whole(file: Path) -> None:
    with reading(file, "an image"):
        check_complete(file)


def check_numbers(files: Sequence[Path], channels: Sequence[str], file_ending: str) -> None:
    """Check that the channels of a case are numbered from 0 on.

    Raises:
        ValueError: if one is missing; the message names it.
    """
    numbers = [int(path.name.removesuffix(file_ending)[-4:]) for path in files]
    for expected, number in enumerate(numbers):
        if number != expected:
            name = f" ({channels[expected]})" if expected < len(channels) else ""
            raise ValueError(f"_{expected:04d}{name} is missing; there is {', '.join(path.name for path in files)}")


def list_cases(folder: Path, dataset_json: Mapping[str, Any]) -> list[list[str]]:
    """Return the files of each case of a folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if there is no image, one without its channel's number, or a case without its first channels or with
            more files than the model has channels.
    """
    ending = dataset_json["file_ending"]
    found = find_cases(folder, ending)
    problems = {name: text for name, text in found.problems.items() if name.endswith(ending) or not found.cases}
    for name, problem in problems.items():
        others = f" ({len(problems)} files like it)" if len(problems) > 1 else ""
        raise ValueError(f"{folder / name}: {problem}{others}")
    channels = channel_names(dataset_json)
    for name, files in found.cases.items():
        try:
            check_numbers(files, channels, ending)
            if len(files) > len(channels):  # one file may have several
                raise ValueError(
                    f"{len(files)} files, the model takes {len(channels)} channels ({', '.join(channels)})"
                )
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from error
    return [[str(path) for path in files] for files in found.cases.values()]


def check_present(folder: Path, checkpoints: Sequence[Path]) -> None:
    """Raise FileNotFoundError unless a model's folder has a plan, a dataset.json and these checkpoints."""
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            trained = ", ".join(
                sorted(other.name for other in folder.parent.glob("*__*__*") if (other / "plans.json").is_file())
            )
            there = f"; trained there: {trained}" if trained else ""
            raise FileNotFoundError(
                f"{folder} has no {name}; specify -d, -tr, -p and -c, or a model's folder with -m{there}"
            )
    for path in checkpoints:
        if not path.is_file():
            there = ", ".join(sorted(str(found.relative_to(folder)) for found in folder.glob("fold_*/*.pth")))
            raise FileNotFoundError(
                f"{folder} has no {path.relative_to(folder)}; there is {there or 'no checkpoint'}; choose with -f and "
                "-chk"
            )
