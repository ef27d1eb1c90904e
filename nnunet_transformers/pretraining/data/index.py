"""Index of a prepared folder: its images and their preparation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..._atomic import write_json
from ..._paths import inside
from ..._reading import read_json, reading

INDEX = "index.json"


@dataclass(frozen=True)
class PreparedCase:
    """A usable image of an index.

    Attributes:
        name: name of its ``.b2nd`` file.
        shape: (channels, *size); empty for images that are read from their source.
    """

    name: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """An image or table row that cannot be used, and the reason."""

    name: str
    reason: str


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

    def spacing_of(self, axes: int) -> tuple[float, ...]:
        """Return the spacing of the last ``axes`` axes in mm.

        Raises:
            ValueError: if the images have no spacing.
        """
        if self.spacing is None:
            raise ValueError("the images have no spacing; use images written by `nnunet-transformers pretrain prepare`")
        return self.spacing[-axes:]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PreparedIndex:
        """Build an index from its JSON form.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: if an entry is missing or malformed.
        """
        spacing, images = content["spacing"], content.get("images")
        return cls(
            cases=tuple(
                PreparedCase(_text(case["name"]), tuple(_size(case.get("shape", ())))) for case in content["cases"]
            ),
            skipped=tuple(Skipped(_text(case["name"]), _text(case["reason"])) for case in content["skipped"]),
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
            "cases": [{key: value for key, value in asdict(case).items() if value != ()} for case in self.cases],
            "skipped": [asdict(case) for case in self.skipped],
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


def read_index(folder: Path) -> PreparedIndex:
    """Read the index of a prepared folder.

    Args:
        folder: folder written by ``prepare``.

    Raises:
        FileNotFoundError: if the folder was not prepared, or its preparation was interrupted.
        ValueError: if the index is damaged, or names an image outside of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no prepared images; run `nnunet-transformers pretrain prepare` first")
    with reading(path, "an index of prepared images", "prepare them again"):
        index = PreparedIndex.from_json(read_json(path))
        for case in index.cases:
            inside(folder, case.name)
        return index
