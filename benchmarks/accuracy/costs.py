"""The processor time of an iteration of each row on each dataset, measured once, and what a budget comes to."""

from __future__ import annotations

import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from nnunet_transformers._lease import lease
from nnunet_transformers._processes import exit_with_parent
from nnunet_transformers.benchmarking.environment import processor_name

from .runs import append_line, read_lines, work_folder
from .tables import BUDGETS, DATA, REFERENCE, ROWS, UNIT_ITERATIONS
from .trainer import make_trainer, seed_all

WARM_UP, MEASURED = 2, 7
COSTS_NAME = "costs.jsonl"


def costs_file() -> Path:
    return work_folder() / COSTS_NAME


def measure(row: str, dataset: str) -> dict[str, Any]:
    """Train some iterations, data loading and augmentation included, in this process.

    Args:
        row, dataset: names of the tables.

    Returns:
        "seconds": the median of an iteration, in processor time; "batch_size", "patch_size", "parameters", "peak_gib"
        of the process, and the processor's name.
    """
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, patch.dict(os.environ, nnUNet_results=folder, nnUNet_n_proc_DA="0"):
        trainer = make_trainer(ROWS[row], DATA[dataset], fold=0, seed=0, iterations=WARM_UP + MEASURED)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        seed_all(0)  # the same augmentation for all rows
        seconds = []
        for _ in range(WARM_UP + MEASURED):
            start = time.process_time()
            trainer.train_step(next(trainer.dataloader_train))
            seconds.append(time.process_time() - start)
        described = {
            "seconds": round(statistics.median(seconds[WARM_UP:]), 4),
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "processor": processor_name(),
            **describe(trainer),
        }
    return described


def describe(trainer: Any) -> dict[str, Any]:
    """Batch, patch and parameters of an initialised trainer."""
    return {
        "batch_size": int(trainer.batch_size),
        "patch_size": [int(n) for n in trainer.configuration_manager.patch_size],
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
    }


def read_costs(*paths: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The measured costs by row and dataset, of files or of this machine's; the first of a pair counts."""
    costs: dict[tuple[str, str], dict[str, Any]] = {}
    for path in paths or (costs_file(),):
        for cost in read_lines(path, "row", "dataset", "seconds"):
            costs.setdefault((cost["row"], cost["dataset"]), cost)
    return costs


def measured_as(row: str, dataset: str) -> tuple[str, str]:
    """The row and dataset whose measured cost counts for these."""
    return ROWS[row].costs_as or row, DATA[dataset].costs_as or dataset


def calibrate(row: str, dataset: str) -> dict[str, Any]:
    """Measure a cost and store it, unless it is stored.

    A stored cost is measured once more beside it: of the row that it varies on this dataset, of that row or itself on
    the reference's dataset, or of the reference. "seconds" are those that it would have taken where that one was
    stored: processors differ in what they are fast at.

    Raises:
        FolderInUse: if another process measures it.
    """
    row, dataset = pair = measured_as(row, dataset)
    if pair in read_costs():
        return read_costs()[pair]
    name = work_folder() / f"{dataset}-{row}.cost"
    with lease(name, name.with_suffix(".lease")):
        if pair not in read_costs():  # since it was asked
            # a process of its own, for its peak memory
            with ProcessPoolExecutor(1, get_context("spawn"), exit_with_parent) as process:
                measured = process.submit(measure, row, dataset).result()
            stored = read_costs()
            base = ROWS[row].varies or row
            related = next((p for p in ((base, dataset), (base, REFERENCE[1]), REFERENCE) if p in stored), None)
            if related is not None:
                with ProcessPoolExecutor(1, get_context("spawn"), exit_with_parent) as process:
                    beside = process.submit(measure, *related).result()["seconds"]
                seconds = measured["seconds"]
                measured["seconds"] = round(seconds * stored[related]["seconds"] / beside, 4)
                measured |= {"measured_seconds": seconds, "beside": list(related), "beside_seconds": beside}
            append_line(costs_file(), {"dataset": dataset, "row": row, **measured})
    return read_costs()[pair]


def seconds_per_iteration(row: str, dataset: str) -> float:
    """Processor time of an iteration; a cost that is not known is measured.

    Raises:
        FolderInUse: if another process measures it.
    """
    return float(calibrate(row, dataset)["seconds"])


def iterations_for(budget: str, row: str, dataset: str) -> int:
    """Iterations that a budget allows; costs that are not known are measured.

    Raises:
        FolderInUse: if another process measures one.
    """
    given = BUDGETS[budget]
    if given.iterations is not None:
        return given.iterations
    assert given.units is not None
    reference, own = (seconds_per_iteration(*pair) for pair in (REFERENCE, (row, dataset)))
    return max(1, round(given.units * UNIT_ITERATIONS * reference / own))
