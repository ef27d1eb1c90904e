"""Everything that a queue needs, in one command: prepare, pretrain, run in several processes, report."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch

from nnunet_transformers._processes import exit_with_parent

from .prepare import prepare
from .pretrain import pretrain
from .runs import Run, pretraining_file, read_lines, read_queue
from .tables import DATA, PRETRAININGS, ROWS


def prepare_queue(queue: Path, processes: int, device: torch.device, loaders: int) -> None:
    """Plan, preprocess, split and pretrain what the runs of a queue need and what is not there yet.

    Args:
        queue: file of the runs.
        processes: of preprocessing.
        device: where encoders are pretrained.
        loaders: processes that load, of a pretraining.

    Raises:
        ValueError: if the queue has no runs.
    """
    runs = read_queue(queue)
    if not runs:
        raise ValueError(f"{queue} has no runs")
    for data in dict.fromkeys(DATA[run.dataset] for run in runs):
        prepare(data, [ROWS[name] for name in rows_of(runs, data.dataset)], processes)
    made = {record["pretraining"] for record in read_lines(pretraining_file())}
    for name in dict.fromkeys(ROWS[run.row].pretraining for run in runs):
        if name is not None and name not in made:
            pretrain(name, device, loaders)


def rows_of(runs: Sequence[Run], dataset: str) -> list[str]:
    """The rows that runs train on a dataset of nnU-Net's, and those whose encoders they start from."""
    rows = [run.row for run in runs if DATA[run.dataset].dataset == dataset]
    pretrained = [PRETRAININGS[name].row for row in rows if (name := ROWS[row].pretraining)]
    return list(dict.fromkeys([*rows, *pretrained]))


def run_in_processes(words: Sequence[str], count: int) -> None:
    """Run the command `run` in several processes, which share a queue; a signal to end goes on to all.

    Args:
        words: the command's arguments.
        count: number of processes, which print their errors.
    """
    context = get_context("spawn")
    workers: list[BaseProcess] = [context.Process(target=_work, args=(list(words),)) for _ in range(count)]

    def pass_on(number: int, frame: FrameType | None) -> None:
        for worker in workers:
            worker.terminate()

    # a terminal sends its interrupt to the workers itself
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _work(words: list[str]) -> None:
    from .command import main  # which imports this module

    exit_with_parent()
    main(words)
