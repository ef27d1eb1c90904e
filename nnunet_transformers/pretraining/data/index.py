"""Index of a prepared folder: its images and their preparation."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..._atomic import write_json
from ..._paths import inside
from ..._reading import RefusedError, read_json, reading
from .manifest import MANIFEST, read_lines

INDEX = "index.json"
# of a folder whose images are in the manifest; one without a number lists them in the index
FORMAT = 2
# parts of a folder whose source mixes 2D images and volumes
PARTS = ("2d", "3d")


@dataclass(frozen=True)
class PreparedCase:
    """A usable image of an index.

    Attributes:
        name: name of its ``.b2nd`` file, or of the member of its shard.
        shape: (channels, *size); empty for images that are read from their source.
        key: path of the first file in the source, or UID of the DICOM series; empty where unknown.
        shard: file that holds it together with others; empty for a file of its own.
        offset, length: its bytes in the shard.
        scale, shift: of each channel, by which value = scale * stored + shift; empty if the values are stored.
    """

    name: str
    shape: tuple[int, ...] = ()
    key: str = ""
    shard: str = ""
    offset: int = 0
    length: int = 0
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PreparedCase:
        """Build an image's entry from its JSON form.

        Raises:
            KeyError, TypeError, ValueError: if an entry is missing or malformed.
        """
        shape = tuple(_size(content.get("shape", ())))
        scale, shift = (tuple(float(v) for v in content.get(name, ())) for name in ("scale", "shift"))
        if len({len(scale), len(shift), *shape[:1]} - {0}) > 1:
            raise ValueError(f"scale and shift of {content['name']!r} are not of its channels")
        key, shard = (_text(content.get(name, "")) for name in ("key", "shard"))
        offset, length = (_number(content.get(name, 0)) for name in ("offset", "length"))
        return cls(_text(content["name"]), shape, key, shard, offset, length, scale, shift)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without unknown entries."""
        unknown = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != unknown[name]}


@dataclass(frozen=True)
class Skipped:
    """An image or table row that cannot be used.

    Attributes:
        name: name that the image would have, or of the row.
        reason: why.
        key: as that of ``PreparedCase``; empty for a row.
    """

    name: str
    reason: str
    key: str = ""


@dataclass(frozen=True)
class PreparedIndex:
    """Images that a run trains on, and their preparation.

    Attributes:
        cases: usable images.
        skipped: other images, with reasons.
        channels: channel names.
        spacing: mm per voxel and axis; None for images without spacing, such as PNG files.
        normalization: nnU-Net's normalisation scheme of each channel.
        plans, configuration: plan, and name of its configuration, that reproduce the preparation; None if unknown.
        images: index of the 2D images that accompany the volumes, if any (UniMiSS).
    """

    cases: tuple[PreparedCase, ...]
    skipped: tuple[Skipped, ...]
    channels: tuple[str, ...]
    spacing: tuple[float, ...] | None
    normalization: tuple[str, ...]
    plans: dict[str, Any] | None = None
    configuration: str | None = None
    images: PreparedIndex | None = None

    @property
    def is_flat(self) -> bool:
        """Whether all images are 2D; those that are read from their source are not known."""
        return bool(self.cases) and all(case.shape[1:2] == (1,) for case in self.cases)

    def spacing_of(self, axes: int) -> tuple[float, ...]:
        """Return the spacing of the last ``axes`` axes in mm.

        Raises:
            ValueError: if the images have no spacing.
        """
        if self.spacing is None:
            raise ValueError("the images have no spacing; use images written by `nnunet-transformers pretrain prepare`")
        return self.spacing[-axes:]

    def only(self, names: Collection[str]) -> PreparedIndex:
        """Return the index of some of its images."""
        wanted = set(names)
        return replace(self, cases=tuple(case for case in self.cases if case.name in wanted))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PreparedIndex:
        """Build an index from its JSON form.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: if an entry is missing or malformed.
        """
        spacing, images = content["spacing"], content.get("images")
        return cls(
            cases=tuple(PreparedCase.from_json(case) for case in content["cases"]),
            skipped=tuple(
                Skipped(_text(case["name"]), _text(case["reason"]), _text(case.get("key", "")))
                for case in content["skipped"]
            ),
            channels=tuple(map(_text, content["channels"])),
            spacing=None if spacing is None else tuple(map(float, spacing)),
            normalization=tuple(map(_text, content["normalization"])),
            plans=content.get("plans"),
            configuration=content.get("configuration"),
            images=None if images is None else cls.from_json(images),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without unknown entries."""
        optional = {
            "plans": self.plans,
            "configuration": self.configuration,
            "images": None if self.images is None else self.images.to_json(),
        }
        return {
            "cases": [case.to_json() for case in self.cases],
            "skipped": [{k: v for k, v in asdict(case).items() if v or k != "key"} for case in self.skipped],
            "channels": self.channels,
            "spacing": self.spacing,
            "normalization": self.normalization,
            **{key: value for key, value in optional.items() if value is not None},
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as JSON, whole or not at all."""
        write_json(self.to_json(), Path(path))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _size(shape: Sequence[Any]) -> Iterator[int]:
    for size in shape:
        if type(size) is not int or size < 1:
            raise ValueError(f"{size!r} is no number of voxels")
        yield size


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def read_index(folder: Path) -> PreparedIndex:
    """Read the index of a prepared folder.

    Args:
        folder: folder written by ``prepare``.

    Raises:
        FileNotFoundError: if the folder was not prepared, or its preparation was interrupted.
        ValueError: if the index is damaged, names an image outside of the folder, or belongs to 2D images and volumes.
    """
    path = folder / INDEX
    if not path.is_file() and (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"the preparation of {folder} was interrupted; run its command again to go on")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no prepared images; run `nnunet-transformers pretrain prepare` first")
    with reading(path, "an index of prepared images", "prepare them again"):
        content = read_json(path)
        if content.get("format", 1) not in (1, FORMAT):
            raise RefusedError(f"{path} has format {content['format']}, this version reads up to {FORMAT}; update it")
        if parts := content.get("parts"):
            names = " or ".join(str(folder / _text(part)) for part in parts)
            raise RefusedError(f"{folder} holds 2D images and volumes apart; give {names}")
        if "format" in content:
            content |= _listed(folder)
        index = PreparedIndex.from_json(content)
        for case in index.cases:
            inside(folder, case.name)
            inside(folder, case.shard or case.name)
        return index


def _listed(folder: Path) -> dict[str, list[Any]]:
    """Return the images of the manifest, sorted by name: a later line on an image replaces an earlier one.

    Of a part, also the skipped images, which the whole folder notes.
    """
    is_part = folder.absolute().name in PARTS
    lines = [line for line in read_lines(folder.absolute().parent) if "skipped" in line] if is_part else []
    found: dict[str, dict[str, Any]] = {}
    for line in [*lines, *read_lines(folder)]:
        if name := line.get("stored", line.get("skipped")):
            found[name] = line
    images = [{**found[name], "name": name} for name in sorted(found)]
    return {"cases": [v for v in images if "stored" in v], "skipped": [v for v in images if "stored" not in v]}
