"""Tables of images and radiology reports: reading, cleaning, split by patient."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .index import Skipped
from .names import split_named
from .radiographs import Radiographs

SPLITS = ("train", "val")
TEXT_COLUMNS = ("report", "impression", "findings")
COLUMNS = ("image", *TEXT_COLUMNS, "split", "patient_id", "study_id")
MIN_WORDS = 3
# decimal numbers, such as 2.5 and .5, and runs of letters and digits
WORD = re.compile(r"\d+(?:[.,]\d+)+|(?<![^\s(])\.\d+|[^\W_]+")


@dataclass(frozen=True)
class ReportPair:
    """An image and its radiology report.

    Attributes:
        image: name in the table.
        report: cleaned text.
        split: one of ``SPLITS``.
        patient_id, study_id: empty if the table has none.
    """

    image: str
    report: str
    split: str
    patient_id: str = ""
    study_id: str = ""


@dataclass(frozen=True)
class ReportTable:
    """Content of a table.

    Attributes:
        pairs: usable rows.
        skipped: other rows, named by image or line, with reasons.
    """

    pairs: list[ReportPair]
    skipped: list[Skipped]

    def of(self, split: str) -> list[ReportPair]:
        """Return the pairs of a split."""
        return [pair for pair in self.pairs if pair.split == split]

    def summary(self) -> str:
        """Count the pairs, and the skipped rows by reason with their first names."""
        lines = [f"{len(self.of('train'))} pairs to train on, {len(self.of('val'))} to validate on"]
        reasons = Counter(skipped.reason for skipped in self.skipped)
        for reason, count in reasons.most_common():
            names = [skipped.name for skipped in self.skipped if skipped.reason == reason]
            lines.append(f"skipped {count}: {reason} ({', '.join(names[:3])}{', ...' if count > 3 else ''})")
        return "\n".join(lines)


def clean_report(text: str) -> str:
    """Reduce a report to its words, runs of letters and digits, and decimal numbers.

    Examples:

        >>> clean_report("Nodule (2.5 cm), RIGHT lower-lobe.")
        'Nodule 2.5 cm RIGHT lower lobe'
    """
    # letters with their accents in one, as Macs write them apart, which would end a word
    return " ".join(WORD.findall(unicodedata.normalize("NFC", text)))


def split_of(identity: str, val_share: float) -> str:
    """Assign a patient to a split, the same in every table and on every machine.

    Args:
        identity: patient identifier.
        val_share: expected share of the patients to validate on.
    """
    number = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "val" if number < val_share else "train"


def read_reports(
    table: Path, images: Radiographs, val_share: float = 0.05, keep_repeated_reports: bool = False
) -> ReportTable:
    """Read a table of images and radiology reports.

    A row is skipped, with its reason, if it is malformed, holds bytes that are not UTF-8, names no image, a missing
    image or the image of an earlier row, or has a report of fewer than three words. A report that another image has is
    skipped too unless ``keep_repeated_reports``.

    Args:
        table: CSV with a header, or JSONL (``.jsonl``), UTF-8. Columns: ``image``; ``report`` or, where it is missing
            or empty, ``impression`` and ``findings``, in this order; ``split`` (train, val or validate), by default a
            hash of the patient decides; ``patient_id``, by default each image is a patient; ``study_id``.
        images: the images that there are.
        val_share: share of the patients to validate on, if there is no ``split``.
        keep_repeated_reports: use all images of a report, such as the views of a study or unremarkable images.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it has no column ``image`` or none with text, or ``val_share`` is not between 0 and 1.
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
    pairs: list[ReportPair] = []
    used: set[str] = set()
    reports: set[str] = set()
    for line, row in rows:
        values = {column: _text(row[column]) for column in COLUMNS if column in row}
        result = _pair(line, values, "split" in columns, images, val_share)
        if isinstance(result, ReportPair):
            if result.image in used:
                result = Skipped(result.image, "image is in the table more than once")
            elif result.report in reports and not keep_repeated_reports:
                result = Skipped(result.image, "report is in the table more than once")
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            used.add(result.image)
            reports.add(result.report)
            pairs.append(result)
    patients = [{pair.patient_id for pair in pairs if pair.split == split} - {""} for split in SPLITS]
    if patients[0] & patients[1]:
        warnings.warn(f"{table}: {len(patients[0] & patients[1])} patients are in both splits", stacklevel=2)
    return ReportTable(pairs, skipped)


def _pair(
    line: int, row: Mapping[str, str], has_split: bool, images: Radiographs, val_share: float
) -> ReportPair | Skipped:
    image = row.get("image", "")
    name = image or f"line {line}"
    if any(_is_broken(value) for value in row.values()):
        return Skipped(ascii(name)[1:-1], "holds bytes that are not UTF-8")
    if not image:
        return Skipped(name, "names no image")
    if reason := images.missing(image):
        return Skipped(name, reason)
    text = row.get("report") or " ".join(row.get(column, "") for column in TEXT_COLUMNS[1:])
    report = clean_report(text)
    if not report:
        return Skipped(name, "has no report")
    if len(report.split()) < MIN_WORDS:
        return Skipped(name, f"report has fewer than {MIN_WORDS} words")
    patient = row.get("patient_id", "")
    split = split_named(row.get("split", ""))
    if has_split and split not in SPLITS:
        return Skipped(name, f"split is {split!r}, not train or val")
    return ReportPair(image, report, split or split_of(patient or image, val_share), patient, row.get("study_id", ""))


def _read_rows(table: Path) -> tuple[list[tuple[int, dict[str, Any]]], list[Skipped]]:
    """Return the rows with their line numbers, and the malformed lines."""
    reader = _jsonl_rows if table.suffix.lower() == ".jsonl" else _csv_rows
    rows, skipped = [], []
    # bytes that are not UTF-8 become surrogates, which invalidate only their own row
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, row in reader(file):
            if isinstance(row, str):
                skipped.append(Skipped(f"line {line}", row))
            else:
                rows.append((line, row))
    return rows, skipped


def _csv_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # strict: an unclosed quote is an error instead of a report that swallows all later rows
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
            yield line, "has more or fewer fields than the header"
        else:
            yield line, dict(zip(header, row, strict=True))


def _jsonl_rows(file: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        yield line, row if isinstance(row, dict) else "is not a JSON object"


def _text(value: Any) -> str:
    """Return a value of a table as text, empty if there is none."""
    return "" if value is None or isinstance(value, (dict, list)) else str(value).strip()


def _is_broken(value: str) -> bool:
    """Return whether a text holds surrogates or replacement characters, which stand for bytes that are not UTF-8."""
    return any("\ud800" <= character <= "\udfff" or character == "\ufffd" for character in value)
