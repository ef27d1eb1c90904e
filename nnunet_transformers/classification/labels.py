"""Tables of images and their labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..pretraining.data.cases import strip_ending

SPLITS = ("train", "val", "test")
PRESENCE = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan}


@dataclass(frozen=True)
class LabelledImages:
    """What a table says of images.

    Attributes:
        names: of the images.
        values: of each, a text for each column of labels.
        columns: of labels. One holds the class of an image; of several each says whether an image has it: 1, 0 or,
            where that is unknown, nothing.
        split: of each one of ``SPLITS``, or None where the table has no ``split``.
        unknown: names in the table that are no image.
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
        """Of the first column."""
        return [value[0] for value in self.values]

    @property
    def is_test(self) -> NDArray | None:
        """Whether an image is to test on, or None where the table has no ``split``."""
        return None if self.split is None else self.split == "test"

    def classes(self) -> list[str]:
        """The labels of one column, sorted, or the names of several."""
        return list(self.columns) if self.multi_label else sorted(set(self.labels))

    def targets(self, classes: Sequence[str]) -> NDArray:
        """Which classes each image has.

        Returns:
            (images, classes), 0 or 1, NaN where unknown.

        Raises:
            ValueError: if an image has none of ``classes``.
        """
        if self.multi_label:
            return np.array([[PRESENCE[v] for v in value] for value in self.values], dtype=np.float32)
        strange = sorted(set(self.labels) - set(classes))
        if strange:
            raise ValueError(f"label {strange[0]!r} is none of the classes {', '.join(classes)}")
        return np.array([[label == c for c in classes] for label in self.labels], dtype=np.float32)


def read_labels(table: Path, known: Collection[str], columns: Sequence[str] = ("label",)) -> LabelledImages:
    """Read a CSV file with a column ``image``, those of labels and, if there is a fixed one, ``split``.

    Args:
        table: the file; an image is named as in the prepared folder, or by its file: with its folder and ending, or
            without either where that is clear.
        known: names of the prepared images.
        columns: of labels, see ``LabelledImages``.

    Raises:
        ValueError: if a column is missing, an image is there twice or has no label, a label or split is none that there
            can be, or no image is known.
    """
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, found = list(reader), reader.fieldnames or []
    missing = [column for column in ("image", *columns) if column not in found]
    if missing:
        raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    _check_rows(table, rows, columns)
    known = set(known)
    names = [_known_name(row["image"], known) for row in rows]
    twice = [name for name, number in Counter(names).items() if name and number > 1]
    if twice:
        raise ValueError(f"{table} names {', '.join(twice[:3])} more than once")
    kept = [(name, row) for name, row in zip(names, rows, strict=True) if name]
    if not kept:
        raise ValueError(
            f"none of the {len(rows)} images in {table} is in the prepared folder: {rows[0]['image'] if rows else ''} "
            f"is not, which has {min(known, default='none')}"
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
                f"column {strange[0]} of {table}, one of several of labels, must hold 1, 0 or nothing (unknown), got "
                f"{row[strange[0]]!r} in line {number}"
            )


def _known_name(file: str, known: Collection[str]) -> str | None:
    """What ``prepare`` calls an image: by its path, by the file alone, and without nnU-Net's channel."""
    path = strip_ending(file.replace("\\", "/"))
    short = path.rpartition("/")[2]
    candidates = (file, path.replace("/", "__"), short, short.removesuffix("_0000"))
    return next((name for name in candidates if name in known), None)
