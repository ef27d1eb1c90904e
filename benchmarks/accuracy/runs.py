"""Runs: what one is, the queue of those to do, and the record of each that is finished."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nnunet_transformers._reading import RefusedError

from .tables import BUDGETS, DATA, JUDGED_FOLD, ROWS

if sys.platform != "win32":
    import fcntl

FOLDS = 5  # of nnU-Net's splits; of another one it draws a random split
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PRETRAININGS_NAME = "pretraining.jsonl"


@dataclass(frozen=True)
class Run:
    """One training: a row on a fold of a dataset.

    Attributes:
        dataset, row, budget: names of the tables.
        fold: fold of the dataset's split.
        seed: of everything random.

    Raises:
        RefusedError: if a table has no such entry, the row does not suit the dataset or the fold, or fold or seed is no
            such number.
    """

    dataset: str
    row: str
    budget: str
    fold: int
    seed: int

    def __post_init__(self) -> None:
        for key, table in (("dataset", DATA), ("row", ROWS), ("budget", BUDGETS)):
            if getattr(self, key) not in list(table):  # which takes what has no hash too
                raise RefusedError(f"{self}: no {key} {getattr(self, key)!r}; tables.py has {', '.join(table)}")
        if not ROWS[self.row].suits(DATA[self.dataset]):
            reason = f"has no network for {DATA[self.dataset].configuration}"
            if ROWS[self.row].pretraining:
                reason = f"is not for {self.dataset}"
            raise RefusedError(f"{self}: {self.row} {reason}")
        # "0" would have the folder of 0 and be another run
        if type(self.fold) is not int or not 0 <= self.fold < FOLDS:
            raise RefusedError(f"{self}: fold {self.fold!r} is no whole number from 0 to {FOLDS - 1}")
        if type(self.seed) is not int or self.seed < 0:
            raise RefusedError(f"{self}: seed {self.seed!r} is no whole number from 0 on")
        if ROWS[self.row].pretraining and self.fold != JUDGED_FOLD:
            raise RefusedError(
                f"{self}: the encoder of {self.row} has seen the validation images of fold {self.fold}; it is for fold "
                f"{JUDGED_FOLD}"
            )

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.dataset}-{self.row}-{self.budget}-fold_{self.fold}-seed_{self.seed}"

    @classmethod
    def of(cls, record: dict[str, Any]) -> Run:
        """The run that a line of a queue or of the results is about.

        Raises:
            RefusedError: if the line lacks a key, or there is no such run.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in record]:
            raise RefusedError(f"lacks {' and '.join(missing)}; a run has {', '.join(names)}")
        return cls(**{name: record[name] for name in names})


def check_folders(*names: str) -> None:
    """Check that environment variables of nnU-Net's are set.

    Raises:
        RefusedError: if one is not.
    """
    if missing := [name for name in names if not os.environ.get(name)]:
        raise RefusedError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; export {', '.join(FOLDERS)}, as "
            "for nnU-Net"
        )


def work_folder() -> Path:
    """Folder of the trainings, the costs and the results.

    Raises:
        RefusedError: if nnU-Net's folder is not set.
    """
    check_folders("nnUNet_results")
    return Path(os.environ["nnUNet_results"]) / "accuracy"


def results_file() -> Path:
    """File of the finished runs."""
    return work_folder() / "results.jsonl"


def pretraining_file() -> Path:
    """File of the finished pretrainings."""
    return work_folder() / PRETRAININGS_NAME


def read_queue(path: Path) -> list[Run]:
    """Read the runs of a queue, in order.

    Raises:
        RefusedError: if a line is no run, or there is none.
    """
    names = {field.name for field in fields(Run)}
    for number, record in _numbered_lines(path):
        if unknown := sorted(record.keys() - names):
            raise RefusedError(f"{path}, line {number}: a run has no {' and '.join(unknown)}")
    runs = read_runs(path)
    if not runs:
        raise RefusedError(f"{path} has no runs, or does not exist")
    return runs


def read_runs(path: Path) -> list[Run]:
    """Read the run of each line, which may have more than that; empty where there is no file.

    Raises:
        RefusedError: if a line is no run.
    """
    runs = []
    for number, record in _numbered_lines(path):
        try:
            runs.append(Run.of(record))
        except RefusedError as error:
            raise RefusedError(f"{path}, line {number}: {error}") from None
    return runs


def read_lines(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read a file of JSON lines; empty where there is none.

    Args:
        path: file.
        keys: what each line has to have.

    Raises:
        RefusedError: if a line is no JSON object, or lacks a key.
    """
    records = []
    for number, record in _numbered_lines(path):
        if missing := [key for key in keys if key not in record]:
            raise RefusedError(f"{path}, line {number}: lacks {' and '.join(missing)}")
        records.append(record)
    return records


def _numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        return
    with open(path, "rb") as file:
        _lock(file.fileno(), is_shared=True)  # a line that is being appended may be there in part
        content = file.read()
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except json.JSONDecodeError as error:
            # its own line number is that within the line
            raise RefusedError(
                f"{path}, line {number}, column {error.colno}: {error.msg}; correct or remove the line"
            ) from None
        except ValueError as error:  # no UTF-8
            raise RefusedError(f"{path}, line {number}: {error}; correct or remove the line") from None
        if not isinstance(record, dict):
            raise RefusedError(f"{path}, line {number}: no JSON object; correct or remove the line")
        yield number, record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a file, whole and after those of other processes.

    Raises:
        OSError: if it cannot be written; the file is then as before.
        ValueError: if the record holds NaN or infinity.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _lock(descriptor)  # what another process appended in between would be cut with a line that has no space
        size = os.fstat(descriptor).st_size
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":  # of a line that was cut, or edited by hand
                line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, size)
            raise OSError(f"{path}: no space for a line of {len(line)} bytes")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, is_shared: bool = False) -> None:
    """Wait for the lock of a file, which closing it gives back; nothing where the system or the disk has no locks."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
