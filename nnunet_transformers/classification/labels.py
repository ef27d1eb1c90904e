"""Tables of images and their labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..pretraining.data.formats import strip_ending

SPLITS = ("train", "val", "test")
PRESENCE = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan}


@dataclass(frozen=True)
class LabelledImages:
    """Labels of prepared images.

    Attributes:
        names: image names.
        values: text of each label column for each image.
        columns: label columns. A single column holds an image's class. Each of several columns states whether an image
            has that label: 1, 0, or empty where unknown.
        split: one of ``SPLITS`` for each image, or None if the table has no ``split``.
        unknown: names in the table without a prepared image.
    """

    names: list[str]
    values: list[tuple[str, ...]]
    columns: tuple[str, ...]
    split: NDArray | None
    unknown: list[str]

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels at once."""
        return len(self.columns) > 1

    @property
    def labels(self) -> list[str]:
        """Labels in the first column."""
        return [value[0] for value in self.values]

    @property
    def is_test(self) -> NDArray | None:
        """Whether each image is in the test split, or None if the table has no ``split``."""
        return None if self.split is None else self.split == "test"

    def classes(self) -> list[str]:
        """Return the sorted labels of a single column, or the names of several columns."""
        return list(self.columns) if self.multi_label else sorted(set(self.labels))

    def targets(self, classes: Sequence[str]) -> NDArray:
        """Encode the labels as targets.

        Returns:
            (images, classes), 0 or 1, NaN where unknown.

        Raises:
            ValueError: if the label of an image is not among ``classes``.
        """
        if self.multi_label:
            return np.array([[PRESENCE[v] for v in value] for value in self.values], dtype=np.float32)
        strange = sorted(set(self.labels) - set(classes))
        if strange:
            raise ValueError(f"label {strange[0]!r} is none of the classes {', '.join(classes)}")
        return np.array([[label == c for c in classes] for label in self.labels], dtype=np.float32)


def read_labels(
    table: Path, known: Collection[str], columns: Sequence[str] = ("label",), files: Mapping[str, str] | None = None
) -> LabelledImages:
    """Read a CSV file with the columns ``image``, the label columns and, for a fixed split, ``split``.

    Args:
        table: the file. It names an image as the prepared folder does, or by its file, with or without folder and
            ending.
        known: names of the prepared images.
        columns: label columns, see ``LabelledImages``.
        files: names of the prepared images by their files in the source, see ``PreparedImages``.

    Raises:
        ValueError: if a column is missing, an image is repeated or has no label, a label or split is invalid, or no
            image was prepared.
    """
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, found = list(reader), reader.fieldnames or []
    missing = [column for column in ("image", *columns) if column not in found]
    if missing:
        raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    _check_rows(table, rows, columns)
    known = frozenset(known)
    names = [_known_name(row["image"], known, files or {}) for row in rows]
    twice = [name for name, number in Counter(names).items() if name and number > 1]
    if twice:
        raise ValueError(f"{table} names {', '.join(twice[:3])} more than once")
    kept = [(name, row) for name, row in zip(names, rows, strict=True) if name]
    if not kept:
        raise ValueError(
            f"none of the {len(rows)} images in {table} is in the prepared folder: the table's first is "
            f"{rows[0]['image'] if rows else 'missing'}, the folder's {min(known, default='missing')}"
        )
    return LabelledImages(
        [name for name, _ in kept],
        [tuple(row[column] for column in columns) for _, row in kept],
        tuple(columns),
        np.array([row["split"] for _, row in kept]) if "split" in found else None,
        [row["image"] for name, row in zip(names, rows, strict=True) if not name],
    )


def _check_rows(table: Path, rows: Sequence[dict[str, str | None]], columns: Sequence[str]) -> None:
    for row in rows:
        row.update({column: (row[column] or "").strip() for column in ("image", *columns, "split") if column in row})
    wanted = ("image", *columns) if len(columns) == 1 else ("image",)
    bare = [number for number, row in enumerate(rows, 2) if not all(row[column] for column in wanted)]
    if bare:
        raise ValueError(f"{table} has no image or no label in line {', '.join(map(str, bare[:3]))}")
    for number, row in enumerate(rows, 2):
        if row.get("split", SPLITS[0]) not in SPLITS:
            raise ValueError(
                f"column split of {table} must hold {', '.join(SPLITS)}, got {row['split']!r} in line {number}"
            )
        strange = [column for column in columns if len(columns) > 1 and row[column] not in PRESENCE]
        if strange:
            raise ValueError(
                f"label column {strange[0]} of {table} must hold 1, 0 or nothing (unknown), got "
                f"{row[strange[0]]!r} in line {number}"
            )


def _known_name(file: str, known: Collection[str], files: Mapping[str, str]) -> str | None:
    """Return the prepared name of a file: tried with its path, without folder, and without nnU-Net's channel number."""
    if (name := files.get(file.replace("\\", "/"))) is not None:
        return name
    path = strip_ending(file.replace("\\", "/"))
    short = path.rpartition("/")[2]
    candidates = (file, path.replace("/", "__"), short, short.removesuffix("_0000"))
    return next((name for name in candidates if name in known), None)
