"""Input and output of an algorithm on grand-challenge.org: one case a run, each image in a folder for its socket.

The platform mounts ``/input`` with ``inputs.json``, a list of the sockets of the run with their relative paths, and an
image in the folder of each, such as ``images/ct/UUID.mha``; it takes ``/output/images/SOCKET/NAME.mha``
(https://grand-challenge.org/documentation/interfaces). Which socket is which channel is stated in a JSON:

    {"inputs": {"brain-mri-t1": "T1", "brain-mri-t2": "T2"}, "output": "brain-tumour"}

or a list of these, for an algorithm with several interfaces.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import SimpleITK as sitk

from .._atomic import replacing
from .._paths import inside
from .._reading import reading
from ..plans.planned import channel_names
from .source import write_image

INPUTS, IMAGES = "inputs.json", "images"
ENDINGS = (".mha", ".mhd", ".tif", ".tiff", ".nii", ".nii.gz", ".nrrd", ".png", ".jpg")
EXAMPLE = '{"inputs": {"ct-image": "CT"}, "output": "organs"}'


@dataclass(frozen=True)
class Interface:
    """Sockets of one kind of run.

    Attributes:
        inputs: name of the model's channel by the slug of the socket.
        output: slug of the socket of the segmentation, or its relative path if that is not ``images/SLUG``.
    """

    inputs: Mapping[str, str]
    output: str

    @property
    def target(self) -> str:
        """Folder of the segmentation, relative to the output."""
        return self.output if "/" in self.output else f"{IMAGES}/{self.output}"


def read_interfaces(path: Path, channels: Sequence[str]) -> list[Interface]:
    """Read the interfaces of an algorithm.

    Args:
        path: JSON, see above.
        channels: names of the model's channels.

    Raises:
        ValueError: if it is no such JSON, or the channels of an interface are not the model's.
    """
    with reading(path, "a JSON of interfaces", f"write {EXAMPLE}, or a list of these"):
        content = json.loads(path.read_text(encoding="utf-8"))
        listed = content if isinstance(content, list) else [content]
        found = [
            Interface({slug: str(channel) for slug, channel in one["inputs"].items()}, str(one["output"]))
            for one in listed
        ]
    for one in found:
        inside(Path("/output"), one.target)
        if sorted(one.inputs.values()) != sorted(channels):
            stated = ", ".join(f"{slug}: {channel}" for slug, channel in one.inputs.items())
            raise ValueError(
                f"{path}: the inputs of {one.output} ({stated}) are not the channels {', '.join(channels)}"
            )
    if len({frozenset(one.inputs) for one in found}) < len(found):
        raise ValueError(f"{path}: two interfaces have the same inputs, so a run could be either")
    return found


def holds_sockets(folder: Path) -> bool:
    """Whether a folder is the input of a run."""
    return (folder / INPUTS).is_file() or (folder / IMAGES).is_dir()


class Sockets:
    """The case of a run.

    Args:
        folder: input of the run.
        interfaces: those of the algorithm.
        dataset_json: that of the model.

    Raises:
        FileNotFoundError: if no interface has all of its inputs there.
        ValueError: if a socket does not have one image, or inputs.json is no list of sockets.
    """

    def __init__(self, folder: Path, interfaces: Sequence[Interface], dataset_json: Mapping[str, Any]) -> None:
        self.problems: Mapping[str, str] = {}
        self._ending: str = dataset_json["file_ending"]
        paths = _paths(folder, interfaces)
        fitting = [one for one in interfaces if set(one.inputs) <= set(paths)]
        if not fitting:
            needed = " or ".join(" and ".join(one.inputs) for one in interfaces)
            raise FileNotFoundError(f"{folder} has the sockets {', '.join(paths) or 'none'}; this model takes {needed}")
        # of two that fit, the other does without an image that is there
        self._interface = max(fitting, key=lambda one: len(one.inputs))
        slugs: dict[str, list[str]] = {}
        for slug, channel in self._interface.inputs.items():
            slugs.setdefault(channel, []).append(slug)
        # channels of one name, such as two phases of a CT, are in the interface's order
        self._names = channel_names(dataset_json)
        self._images = [_only_image(paths[slugs[channel].pop(0)]) for channel in self._names]

    @property
    def names(self) -> Sequence[str]:
        """Name of the first channel's file, which the platform makes unique."""
        name = self._images[0].name
        return [name[: -max(len(ending) for ending in ENDINGS if name.lower().endswith(ending))]]

    def check(self, name: str) -> None:
        """Do nothing: every segmentation can be written."""

    @contextmanager
    def files(self, name: str) -> Iterator[list[Path]]:
        """Give the images of the sockets as channels in the dataset's format."""
        with TemporaryDirectory() as folder:
            paths = [Path(folder, f"{name}_{number:04d}{self._ending}") for number in range(len(self._images))]
            for image, path, channel in zip(self._images, paths, self._names, strict=True):
                write_image(sitk.ReadImage(str(image)), path, image, channel)
            yield paths

    def target(self, name: str, output: Path) -> Path:
        """Return the file in the folder of the output's socket."""
        return output / self._interface.target / f"{name}.mha"

    def write(self, name: str, segmentation: Path, target: Path) -> None:
        """Write a segmentation with the geometry of the first channel to the last digit."""
        image, voxels = sitk.ReadImage(str(self._images[0])), sitk.GetArrayFromImage(sitk.ReadImage(str(segmentation)))
        # a picture has no third axis, which the image of one slice may have
        labels = sitk.GetImageFromArray(voxels.reshape(image.GetSize()[::-1]))
        labels.CopyInformation(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as folder, replacing(target) as partial:
            sitk.WriteImage(labels, str(Path(folder, target.name)), useCompression=True)
            shutil.copyfile(Path(folder, target.name), partial)


def _paths(folder: Path, interfaces: Sequence[Interface]) -> dict[str, Path]:
    """Return the folder of each socket that a run has, by its slug."""
    if not (folder / INPUTS).is_file():
        found = {slug: folder / IMAGES / slug for one in interfaces for slug in one.inputs}
        return {slug: path for slug, path in found.items() if path.is_dir()}
    with reading(folder / INPUTS, "a list of sockets with slug and relative_path"):
        entries = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
        # the platform said interface before it said socket
        sockets = [entry.get("socket") or entry["interface"] for entry in entries]
        stated = {str(one["slug"]): str(one["relative_path"]) for one in sockets}
    return {slug: inside(folder, path) for slug, path in stated.items()}


def _only_image(folder: Path) -> Path:
    content = sorted(folder.iterdir()) if folder.is_dir() else []
    images = [path for path in content if path.name.lower().endswith(ENDINGS)]
    if len(images) != 1:
        raise ValueError(f"{folder} has {len(images)} images ({', '.join(ENDINGS)}), a socket has one")
    return images[0]
