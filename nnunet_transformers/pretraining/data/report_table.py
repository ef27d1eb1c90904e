"""Tables of images and their reports: read, cleaned, split by patient; what cannot be used is named and left out."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prepare import Skipped

SPLITS = ("train", "val")
TEXT_COLUMNS = ("report", "impression", "findings")
COLUMNS = ("image", *TEXT_COLUMNS, "split", "patient_id", "study_id")
MIN_WORDS = 3
# decimal numbers whole, ".5" among them, and runs of letters and digits
WORD = re.compile(r"\d+(?:[.,]\d+)+|(?<![^\s(])\.\d+|[^\W_]+")


@dataclass(frozen=True)
class Pair:
    """An image and its report.

    Attributes:
        image: as the table names it.
        report: cleaned.
        split: one of ``SPLITS``.
        patient_id, study_id: empty where the table has none.
    """

    image: str
    report: str
    split: str
    patient_id: str = ""
    study_id: str = ""


@dataclass(frozen=True)
class ReportTable:
    """What a table holds.

    Attributes:
        pairs: that can be used.
        skipped: the others, by image or line, with reasons.
    """

    pairs: list[Pair]
    skipped: list[Skipped]

    def of(self, split: str) -> list[Pair]:
        """The pairs of a split."""
        return [pair for pair in self.pairs if pair.split == split]

    def summary(self) -> str:
        """Numbers of pairs, and for each reason how many were skipped and the first of them."""
        lines = [f"{len(self.of('train'))} pairs to train on, {len(self.of('val'))} to validate on"]
        reasons = Counter(skipped.reason for skipped in self.skipped)
        for reason, count in reasons.most_common():
            names = [skipped.name for skipped in self.skipped if skipped.reason == reason]
            lines.append(f"skipped {count}: {reason} ({', '.join(names[:3])}{', ...' if count > 3 else ''})")
        return "\n".join(lines)


def clean_report(text: str) -> str:
    """The words of a report: runs of letters and digits, and decimal numbers; other characters are dropped.

    >>> clean_report("Nodule (2.5 cm), RIGHT lower-lobe.")
    'Nodule 2.5 cm RIGHT lower lobe'
    """
    return " ".join(WORD.findall(text))


def split_of(identity: str, val_share: float) -> str:
    """The split of a patient, the same in every table and on every machine.

    Args:
        identity: of the patient.
        val_share: of all patients, in expectation.
    """
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "val" if number < val_share else "train"


def read_reports(
    table: Path, image_folder: Path, val_share: float = 0.05, keep_repeated_reports: bool = False
) -> ReportTable:
    """Read a table of images and reports.

    A row is skipped, with its reason, if it is malformed, holds bytes that are not UTF-8, names no image or one that is
    not there or was named before, or has no report of at least three words or, unless they are kept, one that another
    image has.

    Args:
        table: CSV with a header, or JSONL (``.jsonl``), UTF-8. Columns: ``image``; ``report`` or, where it is missing
            or empty, ``impression`` and ``findings``, in this order; ``split`` (train or val), without which patients
            are split by a hash; ``patient_id``, without which each image counts as a patient; ``study_id``.
        image_folder: that the images' names are relative to.
        val_share: share of the patients to validate on, where there is no ``split``.
        keep_repeated_reports: use all images of a report, such as the views of a study or unremarkable ones.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it has no column ``image``, none with text, or a ``val_share`` outside 0 to 1.
    """
    if not table.is_file():
        raise FileNotFoundError(f"no such table of reports: {table}")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
    rows, skipped = _read_rows(table)
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    found = ", ".join(map(ascii, columns)) or "none"
    if "image" not in columns:
        raise ValueError(f"{table} has no column image; it has {found}")
    if not set(TEXT_COLUMNS) & set(columns):
        raise ValueError(f"{table} has none of the columns {', '.join(TEXT_COLUMNS)}; it has {found}")
    pairs: list[Pair] = []
    images: set[str] = set()
    reports: set[str] = set()
    for line, row in rows:
        values = {column: _text(row[column]) for column in COLUMNS if column in row}
        result = _pair(line, values, "split" in columns, image_folder, val_share)
        if isinstance(result, Pair):
            if result.image in images:
                result = Skipped(result.image, "image is in the table more than once")
            elif result.report in reports and not keep_repeated_reports:
                result = Skipped(result.image, "report is in the table more than once")
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            images.add(result.image)
            reports.add(result.report)
            pairs.append(result)
    patients = [{pair.patient_id for pair in pairs if pair.split == split} - {""} for split in SPLITS]
    if patients[0] & patients[1]:
        warnings.warn(f"{table}: {len(patients[0] & patients[1])} patients are in both splits", stacklevel=2)
    return ReportTable(pairs, skipped)


def _pair(line: int, row: Mapping[str, str], has_split: bool, image_folder: Path, val_share: float) -> Pair | Skipped:
    image = row.get("image", "")
    name = image or f"line {line}"
    if any(_is_broken(value) for value in row.values()):
        return Skipped(ascii(name)[1:-1], "holds bytes that are not UTF-8")
    if not image:
        return Skipped(name, "names no image")
    if not (image_folder / image).is_file():
        return Skipped(name, "image is not there")
    text = row.get("report") or " ".join(row.get(column, "") for column in TEXT_COLUMNS[1:])
    report = clean_report(text)
    if not report:
        return Skipped(name, "has no report")
    if len(report.split()) < MIN_WORDS:
        return Skipped(name, f"report has fewer than {MIN_WORDS} words")
    patient = row.get("patient_id", "")
    split = row["split"].lower() if has_split and row.get("split") else ""
    if has_split and split not in SPLITS:
        return Skipped(name, f"split is {split!r}, not train or val")
    return Pair(image, report, split or split_of(patient or image, val_share), patient, row.get("study_id", ""))


def _read_rows(table: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[Skipped]]:
    """Rows with their lines, and lines that are none."""
    reader = _jsonl_rows if table.suffix.lower() == ".jsonl" else _csv_rows
    rows, skipped = [], []
    # what is no UTF-8 becomes surrogates, so that it spoils its own row alone
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, row in reader(file):
            if isinstance(row, str):
                skipped.append(Skipped(f"line {line}", row))
            else:
                rows.append((line, row))
    return rows, skipped


def _csv_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # strict: a quote that is never closed is an error instead of a report that holds all rows after it
    reader = csv.reader(file, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"malformed row: {error}"
            continue
        if not any(row):
            continue
        if header is None:
            header = [column.strip() for column in row]
        elif len(row) != len(header):
            yield line, "has not as many fields as the table has columns"
        else:
            yield line, dict(zip(header, row, strict=True))


def _jsonl_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        yield line, row if isinstance(row, dict) else "is no JSON object"


def _text(value: Any) -> str:
    """A table's value as text; "" where there is none."""
    return "" if value is None or isinstance(value, (dict, list)) else str(value).strip()


def _is_broken(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" or character == "\ufffd" for character in value)
