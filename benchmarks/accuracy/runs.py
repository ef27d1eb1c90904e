"""Runs: what one is, the queue of those to do, and the record of each that is finished."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .tables import BUDGETS, DATA, ROWS


@dataclass(frozen=True)
class Run:
    """One training: a row on a fold of a dataset.

    Attributes:
        dataset, row, budget: names of the tables.
        fold: fold of the dataset's split.
        seed: of everything random.

    Raises:
        ValueError: if a table has no such entry, or the row does not suit the dataset.
    """

    dataset: str
    row: str
    budget: str
    fold: int
    seed: int

    def __post_init__(self) -> None:
        for key, table in (("dataset", DATA), ("row", ROWS), ("budget", BUDGETS)):
            if getattr(self, key) not in table:
                raise ValueError(f"{self}: no {key} {getattr(self, key)!r}; tables.py has {', '.join(table)}")
        if not ROWS[self.row].suits(DATA[self.dataset]):
            reason = f"has no network for {DATA[self.dataset].configuration}"
            if ROWS[self.row].pretraining:
                reason = f"is not for {self.dataset}"
            raise ValueError(f"{self}: {self.row} {reason}")

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.dataset}-{self.row}-{self.budget}-fold_{self.fold}-seed_{self.seed}"

    @classmethod
    def of(cls, record: dict[str, Any]) -> Run:
        """The run that a line of a queue or of the results is about."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def work_folder() -> Path:
    """Folder of the trainings, the costs and the results.

    Raises:
        SystemExit: if nnU-Net's folders are not set.
    """
    if "nnUNet_results" not in os.environ:
        raise SystemExit("nnUNet_results is not set; export it, nnUNet_raw and nnUNet_preprocessed, as for nnU-Net")
    return Path(os.environ["nnUNet_results"]) / "accuracy"


def results_file() -> Path:
    """File of the finished runs."""
    return work_folder() / "results.jsonl"


def pretraining_file() -> Path:
    """File of the finished pretrainings."""
    return work_folder() / "pretraining.jsonl"


def read_queue(path: Path) -> list[Run]:
    """Read the runs of a queue, in order.

    Raises:
        ValueError: if a line is no run.
    """
    return [Run.of(record) for record in read_lines(path)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; empty where there is none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a file, whole and after those of other processes.

    Raises:
        OSError: if it cannot be written; the file is then as before.
        ValueError: if the record holds NaN or infinity.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        # one call, which appends as a whole
        if (written := os.write(descriptor, line)) != len(line):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(f"{path}: no space for a line of {len(line)} bytes")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
