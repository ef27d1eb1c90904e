"""``dataset.json`` as it is found: nnU-Net's, the Medical Segmentation Decathlon's, or one that lacks entries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._paths import inside
from ..._reading import RefusedError, read_json, reading

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class DatasetDescription:
    """What ``dataset.json`` says about the images.

    Attributes:
        channels: channel names; None if it has none.
        file_ending: ending of the images; None if it has none.
        training: image files of each training case by its name, absolute; None where the folder ``imagesTr`` says it.
        test: image files that it lists for testing, absolute.
        reader: name of nnU-Net's reader that it asks for; None if it asks for none.
    """

    channels: list[str] | None = None
    file_ending: str | None = None
    training: dict[str, tuple[str, ...]] | None = None
    test: tuple[str, ...] = ()
    reader: str | None = None


def read_description(folder: Path) -> DatasetDescription:
    """Read the ``dataset.json`` of a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or an entry is of no known form; the message names the entry.
    """
    path = folder / DESCRIPTION
    content = read_json(path, "a description of a dataset", "correct it, or give the folder of the images")
    with reading(path, "a description of a dataset", "correct it, or give the folder of the images"):
        return DatasetDescription(
            channels=_channels(content),
            file_ending=_text(content, "file_ending"),
            training=_training(content, folder),
            test=tuple(_file(folder, _image(entry, "test")) for entry in _list(content, "test")),
            reader=_reader(content),
        )


def _channels(content: Mapping[str, Any]) -> list[str] | None:
    """Return the channel names of ``channel_names`` or ``modality``, as an object by number, a list or one name."""
    for entry in ("channel_names", "modality"):
        names = content.get(entry)
        if isinstance(names, str) and names:
            return [names]
        if isinstance(names, Mapping) and names:
            if not all(str(key).isdigit() for key in names):
                raise RefusedError(f"{entry} in {DESCRIPTION} must have numbers as keys, it has {', '.join(names)}")
            names = [names[key] for key in sorted(names, key=int)]
        if isinstance(names, Sequence) and names:
            return [str(name) for name in names]
    return None


def _training(content: Mapping[str, Any], folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Return the cases of nnU-Net's table ``dataset`` or of the Decathlon's list ``training``."""
    if isinstance(table := content.get("dataset"), Mapping):
        for name in table:
            inside(folder, name)
        return {name: tuple(_file(folder, image) for image in entry["images"]) for name, entry in table.items()}
    listed = [_image(entry, "training") for entry in _list(content, "training")]
    # nnU-Net's own files have a channel number, which the lists of converted datasets leave out
    if not listed or not all((folder / image).is_file() for image in listed):
        return None
    return {image: (_file(folder, image),) for image in listed}


def _reader(content: Mapping[str, Any]) -> str | None:
    name = _text(content, "overwrite_image_reader_writer")
    return None if name == "None" else name


def _file(folder: Path, image: Any) -> str:
    """Return the path of an image as nnU-Net expands it: it may lie anywhere."""
    return os.path.abspath(folder / os.path.expandvars(str(image)))


def _image(entry: Any, where: str) -> str:
    image = entry.get("image") if isinstance(entry, Mapping) else entry
    if not isinstance(image, str):
        raise RefusedError(f"{where} in {DESCRIPTION} must list images, it holds {entry!r}")
    return image


def _list(content: Mapping[str, Any], entry: str) -> Sequence[Any]:
    value = content.get(entry)
    return value if isinstance(value, list) else []


def _text(content: Mapping[str, Any], entry: str) -> str | None:
    value = content.get(entry)
    if value is not None and not isinstance(value, str):
        raise RefusedError(f"{entry} in {DESCRIPTION} must be a text, it is {value!r}")
    return value
