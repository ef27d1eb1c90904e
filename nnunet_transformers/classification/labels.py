"""Tables of images and their labels."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._reading import RefusedError, read_json, reading
from ..pretraining.data.names import known_name, split_named

SPLITS = ("train", "val", "test")
PRESENCE = {"1": 1.0, "0": 0.0, "": np.nan}
# CheXpert's label of a finding that the report is not sure of, and what --uncertain makes of it
UNCERTAIN = "-1"
CHOICES = {"zeros": "0", "ones": "1", "ignore": ""}
# numbers as a table of floats has them
WHOLE = re.compile(r"(-?\d+)\.0+")


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
        wanted = [plain(c) for c in classes]  # earlier classifiers have classes such as 1.0
        strange = sorted(set(self.labels) - set(wanted))
        if strange:
            raise ValueError(f"label {strange[0]!r} is none of the classes {', '.join(classes)}")
        return np.array([[label == c for c in wanted] for label in self.labels], dtype=np.float32)


def read_labels(
    table: Path,
    known: Collection[str],
    columns: Sequence[str] = ("label",),
    files: Mapping[str, str | None] | None = None,
    uncertain: Mapping[str, str] | None = None,
) -> LabelledImages:
    """Read a CSV file with the columns ``image``, the label columns and, for a fixed split, ``split``.

    Numbers such as 1.0 are read as 1, and the words validate, validation and valid as val.

    Args:
        table: the file. It names an image as the prepared folder does, or by its file, with or without folder and
            ending.
        known: names of the prepared images.
        columns: label columns, see ``LabelledImages``.
        files: names of the prepared images by their files in the source, see ``PreparedImages``.
        uncertain: what the label -1 of a column becomes, see ``read_uncertain``. A row whose only label is ignored is
            left out.

    Raises:
        ValueError: as ``read_rows``, and if a column is missing, an image is repeated or has no label, a label or split
            is invalid, or no image was prepared.
    """
    numbered, found = read_rows(table, "a table of labels", ("image", "split", *columns))
    missing = [column for column in ("image", *columns) if column not in found]
    if missing:
        raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(found) or 'none'}")
    rows = _checked_rows(table, numbered, columns, uncertain or {})
    known = frozenset(known)
    names = [known_name(row["image"] or "", known, files or {}) for row in rows]
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


Row = dict[str, Any]


def read_rows(table: Path, what: str, columns: Collection[str]) -> tuple[list[tuple[int, Row]], list[str]]:
    """Read a CSV file.

    Args:
        table: the file.
        what: what it should be, such as "a table of labels".
        columns: names of the columns to use, if present.

    Returns:
        rows, each with the number of its line, whose fields of these columns are texts; and the names of all columns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, has one of these columns twice, a row with too many or too few fields, or a
            misplaced quote; it names the line.
    """
    with (
        reading(table, what, "save it as CSV in UTF-8"),
        open(table, newline="", encoding="utf-8-sig") as file,
    ):
        reader = csv.DictReader(file, strict=True)
        try:
            rows, found = [(reader.line_num, row) for row in reader], list(reader.fieldnames or [])
        except csv.Error as error:
            where = f"{table}, line {reader.reader.line_num}"
            raise RefusedError(f"{where}: {error}; quote a field as a whole, and double a quote in it") from error
    used = [column for column in found if column in columns]
    if twice := [column for column, number in Counter(used).items() if number > 1]:
        raise ValueError(f"{table} has the column {twice[0]} more than once; rename one")
    for number, row in rows:
        # commas at the end of a line are fields without content
        if any(map(str.strip, row.get(None, ()))) or any(row[column] is None for column in used):
            raise ValueError(f"{table}, line {number}: not as many fields as the header; is a comma missing?")
    return rows, found


def read_uncertain(choice: str | None, columns: Sequence[str]) -> dict[str, str]:
    """Return what the label -1, uncertain, becomes in each column.

    Args:
        choice: ``zeros``, ``ones`` or ``ignore`` for all columns; or a JSON file with one of them for each column, such
            as ``{"Edema": "ones", "Cardiomegaly": "zeros"}``; None for none.
        columns: label columns.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON, lacks a column or has another word.
    """
    if choice is None:
        return {}
    if choice in CHOICES:
        return dict.fromkeys(columns, choice)
    if not Path(choice).is_file():
        raise FileNotFoundError(f"--uncertain must be {', '.join(CHOICES)} or a JSON file, there is no {choice}")
    content = read_json(choice, "a JSON file of columns and " + ", ".join(CHOICES))
    for column in columns:
        if content.get(column) not in [*CHOICES]:  # whatever JSON holds, also what has no hash
            raise ValueError(f"{choice} must state {', '.join(CHOICES)} for column {column}, not {content.get(column)}")
    return {column: content[column] for column in columns}


def _checked_rows(
    table: Path, rows: Iterable[tuple[int, Row]], columns: Sequence[str], uncertain: Mapping[str, str]
) -> list[Row]:
    """Return the rows with plain labels and splits, without those whose only label is ignored."""
    kept, bare = [], []
    for number, row in rows:
        row = {key: (row[key] or "").strip() for key in ("image", *columns, "split") if key in row}
        given = [row[column] for column in columns]
        row |= {column: _label(row[column], uncertain.get(column)) for column in columns}
        if "split" in row:
            row["split"] = split_named(row["split"])
            if row["split"] not in SPLITS:
                words = ", ".join(SPLITS)
                raise ValueError(f"column split of {table} must hold {words}, got {row['split']!r} in line {number}")
        if not row["image"] or (len(columns) == 1 and not given[0]):
            bare.append(number)
        strange = [column for column in columns if len(columns) > 1 and row[column] not in PRESENCE]
        if strange:
            raise ValueError(
                f"label column {strange[0]} of {table} must hold 1, 0, nothing (unknown), or -1 (uncertain) with "
                f"--uncertain zeros, ones, ignore or a file; got {row[strange[0]]!r} in line {number}"
            )
        if len(columns) > 1 or row[columns[0]]:
            kept.append(row)
    if bare:
        raise ValueError(f"{table} has no image or no label in line {', '.join(map(str, bare[:3]))}")
    return kept


def _label(text: str, uncertain: str | None) -> str:
    text = plain(text)
    return CHOICES[uncertain] if text == UNCERTAIN and uncertain is not None else text


def unknown_note(unknown: Sequence[str]) -> str:
    """Say how many images of a table have no prepared image; empty if all have."""
    return f"{len(unknown)} images of the table are not in the folder, first {unknown[0]}" if unknown else ""


def plain(text: str) -> str:
    """Return 1 for 1.0; other labels as they are."""
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text
