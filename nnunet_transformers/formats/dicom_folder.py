"""A folder of DICOM series as cases; their segmentations become DICOM-SEG."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..plans.planned import channel_names
from .dicom_segmentation import check_installed, check_source, write_dicom_segmentation
from .dicom_series import alone, find_series, is_dicom, read_series
from .readable import encodable
from .source import write_image
from .walk import walk

# of a folder with a series of one channel of a case, as nnU-Net's files have it
CHANNEL = re.compile(r"(.+)_(\d{4})")


class DicomFolder:
    """Cases of a folder and its subfolders, each a DICOM series of a volume.

    A series alone in its folder is named by the folder, another one by its SeriesInstanceUID. For a model of several
    channels the folders are called CASE_0000, CASE_0001 and so on, one series in each.

    Args:
        folder: source folder.
        dataset_json: that of the model.

    Attributes:
        skipped: DICOM files that are not to be segmented, with the reason: reports, localisers beside a volume.

    Raises:
        ModuleNotFoundError: without the extra ``[dicom]``.
        ValueError: if there is no image in the folder, or it belongs to no channel of the model.
    """

    def __init__(self, folder: Path, dataset_json: Mapping[str, Any]) -> None:
        check_installed()
        self._labels: Mapping[str, Any] = dataset_json["labels"]
        self._codes = _checked(dataset_json.get("dicom_codes", {}), self._labels)
        self._ending: str = dataset_json["file_ending"]
        self._names = channel_names(dataset_json)
        self.problems: dict[str, str] = {}
        paths = [str(path.relative_to(folder)) for path in dicom_files(folder)]
        found, self.skipped = find_series(folder, paths)
        images, of_files = _named(folder, [files for _, files in found.values()], list(found), self.skipped)
        self._channels = _channels(images, of_files, len(self._names))
        if not self._channels:
            raise ValueError(f"no image in {folder}: none of its {len(paths)} DICOM files is one; {self.notes()}")

    @property
    def names(self) -> Sequence[str]:
        """Names of the cases."""
        return list(self._channels)

    def notes(self) -> str:
        """Return how many files are skipped for which reason; empty if none is."""
        return "; ".join(f"{count} skipped: {reason}" for reason, count in Counter(self.skipped.values()).items())

    def check(self, name: str) -> None:
        """Check that the first channel can be the source of a DICOM-SEG."""
        check_source(self._channels[name][0], self._labels, self._codes)

    @contextmanager
    def files(self, name: str) -> Iterator[list[Path]]:
        """Give the case's channels as files of the dataset's format."""
        with TemporaryDirectory() as folder:
            paths = [Path(folder, f"{name}_{number:04d}{self._ending}") for number in range(len(self._channels[name]))]
            for files, path, channel in zip(self._channels[name], paths, self._names, strict=True):
                write_image(read_series(files), path, files[0], channel)
            yield paths

    def target(self, name: str, output: Path) -> Path:
        """Return the DICOM-SEG of a case."""
        return output / f"{name}.dcm"

    def write(self, name: str, segmentation: Path, target: Path) -> None:
        """Write a segmentation as DICOM-SEG on the slices of the first channel."""
        write_dicom_segmentation(segmentation, self._channels[name][0], self._labels, target, self._codes)


def _checked(codes: Any, labels: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    """Return codes of labels by name; raise ValueError if one is not (value, scheme, meaning) of a label."""
    if not isinstance(codes, dict):
        raise ValueError(f"dicom_codes in dataset.json must state [value, scheme, meaning] by label, got {codes!r}")
    for name, code in codes.items():
        if name not in labels or not isinstance(code, list) or [type(part) for part in code] != [str] * 3:
            raise ValueError(
                f"dicom_codes in dataset.json has {name}: {code!r}; write [value, scheme, meaning] of a label"
            )
    return codes


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files of a folder and its subfolders, in order, as ``walk`` finds them."""
    yield from (path for path in (folder / name for name, reason in walk(folder) if not reason) if is_dicom(path))


def _named(
    folder: Path, images: Sequence[tuple[str, ...]], keys: Sequence[str], skipped: dict[str, str]
) -> tuple[dict[str, tuple[str, ...]], set[str]]:
    """Return the images by name, and the names that are of a file; single slices beside a volume are left out."""
    parents: dict[Path, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
    for key, files in zip(keys, images, strict=True):
        parents[Path(files[0]).parent].append((key, files))
    named: dict[str, tuple[str, ...]] = {}
    of_files = set()
    for parent, content in parents.items():
        if any(len(files) > 1 for _, files in content):
            singles = [files[0] for _, files in content if len(files) == 1]
            skipped |= {str(Path(path).relative_to(folder)): "a single slice beside a volume" for path in singles}
            content = [one for one in content if len(one[1]) > 1]
        parts = parent.relative_to(folder).parts
        for key, files in content:
            if len(content) == 1 and parts:
                own = "__".join(parts)
            elif len(files) == 1:  # its key is its path
                own = alone(key)
            else:
                own = "__".join((*parts, key.replace("/", "__")))
            own = encodable(own)
            if own in named:  # by a folder or a file that differs in its ending
                own = encodable("__".join(Path(files[0]).relative_to(folder).parts))
            while own in named:
                own += "_"
            named[own] = files
            if len(files) == 1 and not (len(content) == 1 and parts):
                of_files.add(own)
    return named, of_files


def _channels(
    images: Mapping[str, tuple[str, ...]], of_files: Collection[str], count: int
) -> dict[str, list[tuple[str, ...]]]:
    """Return the series of each case, one per channel, by the numbers in their names.

    For one channel, 0000 says so if no other number stands beside it; files may be numbered from 0000 on.

    Raises:
        ValueError: if a folder's name has no number of a channel, or not the ones that the model takes.
    """
    cases: dict[str, dict[int, tuple[str, ...]]] = defaultdict(dict)
    numbers: dict[str, set[int]] = defaultdict(set)
    for numbered in filter(None, map(CHANNEL.fullmatch, images)):
        numbers[numbered[1]].add(int(numbered[2]))
    for name, files in sorted(images.items()):
        match = CHANNEL.fullmatch(name)
        if match and count == 1:
            found = numbers[match[1]]
            if 0 not in found or match[1] in images or (name in of_files and found != {0}):
                match = None  # a number of a patient, a year or an image
        if match is None and count > 1:
            raise ValueError(
                f"{name}: the model takes {count} channels; put each series into a folder CASE_0000, CASE_0001 ..."
            )
        case, number = (match[1], int(match[2])) if match else (name, 0)
        cases[case][number] = files
    for case, channels in cases.items():
        if sorted(channels) != list(range(count)):
            given = ", ".join(f"_{number:04d}" for number in sorted(channels))
            patients = "; if these number the patients, count from 0001 or write three digits" if count == 1 else ""
            raise ValueError(f"{case}: has {given}, the model takes {count} channels from _0000 on{patients}")
    return {case: [channels[number] for number in range(count)] for case, channels in cases.items()}
