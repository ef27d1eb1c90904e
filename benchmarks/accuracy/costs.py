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

from nnunet_transformers._atomic import write_json
from nnunet_transformers._reading import read_json
from nnunet_transformers.benchmarking.environment import processor_name

from .runs import work_folder
from .tables import BUDGETS, DATA, REFERENCE, ROWS, UNIT_ITERATIONS
from .trainer import make_trainer, seed_all

WARM_UP, MEASURED = 2, 15


def costs_file() -> Path:
    return work_folder() / "costs.json"


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


def read_costs() -> dict[str, dict[str, dict[str, Any]]]:
    """The measured costs by dataset and row."""
    return read_json(costs_file()) if costs_file().is_file() else {}


def calibrate(row: str, dataset: str) -> dict[str, Any]:
    """Measure a cost and store it, unless it is stored."""
    known = read_costs().get(dataset, {}).get(row)
    if known is not None:
        return known
    # a process of its own, for its peak memory
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        measured = process.submit(measure, row, dataset).result()
    costs = read_costs()
    costs.setdefault(dataset, {})[row] = measured
    costs_file().parent.mkdir(parents=True, exist_ok=True)
    write_json(costs, costs_file())
    return measured


def cost(row: str, dataset: str) -> float:
    """Processor seconds of an iteration.

    Raises:
        ValueError: if it was not measured.
    """
    try:
        return float(read_costs()[dataset][row]["seconds"])
    except KeyError:
        raise ValueError(
            f"{costs_file()} lacks {row} on {dataset}; run `python -m benchmarks.accuracy calibrate --rows {row} "
            f"--datasets {dataset}`"
        ) from None


def iterations_for(budget: str, row: str, dataset: str) -> int:
    """Iterations that a budget allows.

    Raises:
        ValueError: if a cost was not measured.
    """
    given = BUDGETS[budget]
    if given.iterations is not None:
        return given.iterations
    assert given.units is not None
    return max(1, round(given.units * UNIT_ITERATIONS * cost(*REFERENCE) / cost(row, dataset)))
