"""Everything that a queue needs, in one command: prepare, calibrate, pretrain, run in several processes, report."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from types import FrameType

import torch

from nnunet_transformers._processes import exit_with_parent

from .costs import seconds_per_iteration
from .prepare import prepare
from .pretrain import pretrain
from .runs import Run, pretraining_file, read_lines
from .tables import BUDGETS, DATA, PRETRAININGS, REFERENCE, ROWS


def prepare_runs(runs: Sequence[Run], processes: int, device: torch.device, loaders: int) -> None:
    """Plan, preprocess, split, calibrate and pretrain what runs need and what is not there yet.

    Args:
        runs: the runs of a queue.
        processes: of preprocessing.
        device: where encoders are pretrained.
        loaders: processes that load, of a pretraining.
    """
    for data in dict.fromkeys(DATA[run.dataset] for run in runs):
        prepare(data, [ROWS[name] for name in rows_of(runs, data.dataset)], processes)
    # before the workers start: while one of them measures a cost, the others have nothing to do and end
    timed = [(run.row, run.dataset) for run in runs if BUDGETS[run.budget].units]
    wanted = dict.fromkeys(name for run in runs if (name := ROWS[run.row].pretraining))
    made = {record["pretraining"] for record in read_lines(pretraining_file(), "pretraining")}
    if timed or wanted:  # the unit of budgets, and of what a pretraining costs
        prepare(DATA[REFERENCE[1]], [ROWS[REFERENCE[0]]], processes)
    for pair in dict.fromkeys([REFERENCE, *timed] if timed else []):
        seconds_per_iteration(*pair)
    for name in wanted:
        if name not in made:
            pretrain(name, device, loaders)


def rows_of(runs: Sequence[Run], dataset: str) -> list[str]:
    """The rows that runs train on a dataset of nnU-Net's, and those whose encoders they start from."""
    rows = [run.row for run in runs if DATA[run.dataset].dataset == dataset]
    pretrained = [PRETRAININGS[name].row for row in rows if (name := ROWS[row].pretraining)]
    return list(dict.fromkeys([*rows, *pretrained]))


def run_in_processes(command: Callable[[list[str]], object], words: Sequence[str], count: int) -> None:
    """Run a command in several processes, which share a queue; a signal to end goes on to all.

    Args:
        command: function of a module.
        words: its arguments.
        count: number of processes, which print their errors.
    """
    context = get_context("spawn")
    workers: list[BaseProcess] = [context.Process(target=_work, args=(command, list(words))) for _ in range(count)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()

    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, _ in before:
        signal.signal(number, pass_on)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _work(command: Callable[[list[str]], object], words: list[str]) -> None:
    exit_with_parent()
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal would interrupt it as well as its parent, which passes that on
    command(words)
