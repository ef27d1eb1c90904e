"""The commands `prepare`, `calibrate`, `pretrain`, `run`, `report` and `reproduce`."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import torch

from nnunet_transformers._lease import FolderInUse
from nnunet_transformers._processes import available_cores
from nnunet_transformers._reading import RefusedError

from . import __doc__ as description
from .costs import calibrate, iterations_for
from .execute import How, finished_runs, run_queue
from .prepare import check_raw, prepare
from .pretrain import pretrain
from .report import report
from .reproduce import prepare_runs, run_in_processes
from .runs import (
    FOLDERS,
    PRETRAININGS_NAME,
    check_folders,
    pretraining_file,
    read_queue,
    read_runs,
    results_file,
    work_folder,
)
from .tables import BUDGETS, DATA, PRETRAININGS, REFERENCE, ROWS

RESULTS = Path(__file__).parents[1] / "results" / "accuracy"
HUNDRED_EPOCHS = Path(__file__).with_name("hundred_epochs.jsonl")
LOWEST_PRIORITY = 19
# CU_CTX_SCHED_BLOCKING_SYNC
BLOCKING_WAITS = 4


def next_time(text: str) -> float:
    """Seconds since the epoch of the next HH:MM."""
    now = datetime.now()
    clock = datetime.strptime(text, "%H:%M").time()
    until = datetime.combine(now.date(), clock)
    return (until if until > now else until + timedelta(days=1)).timestamp()


def _prepare(arguments: argparse.Namespace) -> None:
    check_folders("nnUNet_raw", "nnUNet_preprocessed")
    check_raw(DATA[name] for name in arguments.datasets)
    for name in arguments.datasets:
        prepare(DATA[name], [ROWS[row] for row in arguments.rows], arguments.processes)


def _calibrate(arguments: argparse.Namespace) -> None:
    check_folders("nnUNet_preprocessed", "nnUNet_results")
    calibrate(*REFERENCE)
    for dataset in arguments.datasets:
        for row in arguments.rows:
            if ROWS[row].suits(DATA[dataset]):
                measured = calibrate(row, dataset)
                iterations = {budget: iterations_for(budget, row, dataset) for budget in BUDGETS}
                print(json.dumps({**measured, "iterations": iterations}), flush=True)


def _pretrain(arguments: argparse.Namespace) -> None:
    check_folders(*FOLDERS)
    check_raw(DATA[PRETRAININGS[name].dataset] for name in arguments.names)
    for name in arguments.names:
        pretrain(name, arguments.device, arguments.loaders)


def sleep_while_waiting() -> None:
    """Let a process that waits for the GPU give its core to others, before it has used the GPU."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    driver.cuDevicePrimaryCtxSetFlags_v2(0, BLOCKING_WAITS)


def _check_graphs(arguments: argparse.Namespace) -> None:
    if arguments.graphs and arguments.device.type != "cuda":
        raise SystemExit("--graphs are CUDA graphs: add --device cuda")


def _run(arguments: argparse.Namespace) -> None:
    check_folders("nnUNet_preprocessed", "nnUNet_results")
    if arguments.device.type == "cuda":
        sleep_while_waiting()
    _check_graphs(arguments)
    os.nice(LOWEST_PRIORITY)
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True  # as nnU-Net's command
    until = next_time(arguments.until) if arguments.until else float("inf")
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        print("ends after this epoch; once more: at once", flush=True)
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    how = How(
        arguments.device, arguments.loaders, not arguments.discard_state, not arguments.discard_final, arguments.graphs
    )
    failed = run_queue(arguments.queue, lambda: bool(asked) or time.time() >= until, how)
    if failed:
        raise SystemExit(f"failed: {', '.join(run.name for run in failed)}")


def _report(arguments: argparse.Namespace) -> None:
    kept = arguments.output.with_suffix(".jsonl")
    if missing := [str(path) for path in arguments.results if not path.is_file()]:
        raise SystemExit(f"{', '.join(missing)}: no such file")
    sources = arguments.results or [results_file()]
    if not any([read_runs(path) for path in (kept, *sources)]):  # all are read, for their mistakes
        raise SystemExit(f"no finished runs in {' and '.join(map(str, sources))}")
    report([kept, *sources], arguments.output, [path.with_name(PRETRAININGS_NAME) for path in sources])


def _reproduce(arguments: argparse.Namespace) -> None:
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is found; add --device cpu to train on a processor, where 100 epochs take days")
    _check_graphs(arguments)
    check_folders(*FOLDERS)
    runs = read_queue(arguments.queue)
    check_raw(DATA[run.dataset] for run in runs)
    prepare_runs(runs, arguments.processes, arguments.device, arguments.loaders)
    words = ["run", "--queue", str(arguments.queue), "--device", str(arguments.device)]
    words += ["--loaders", str(arguments.loaders), *["--graphs"] * arguments.graphs]
    run_in_processes(main, words, arguments.workers)
    if results_file().is_file():
        output = arguments.output or work_folder() / "accuracy"
        report([results_file()], output, [pretraining_file()])
        print(f"report: {output.with_suffix('.md')}")
    finished = finished_runs()
    if left := [run for run in runs if run not in finished]:
        raise SystemExit(
            f"{len(left)} of {len(runs)} runs are not finished; their errors, if any, are above, and the same command "
            "goes on with them"
        )


def main(words: list[str] | None = None) -> None:
    """Run a command.

    Args:
        words: arguments; by default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    for name, function in (("prepare", _prepare), ("calibrate", _calibrate)):
        command = commands.add_parser(name)
        if function is _prepare:
            command.add_argument("--processes", type=int, default=1, help="of preprocessing")
        command.add_argument("--datasets", nargs="+", default=list(DATA), choices=list(DATA))
        command.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
        command.set_defaults(function=function)
    command = commands.add_parser("pretrain")
    command.add_argument("names", nargs="+", choices=list(PRETRAININGS), metavar="NAME", help=", ".join(PRETRAININGS))
    command.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (the default) or cuda")
    command.add_argument("--loaders", type=int, default=0, help="processes that load")
    command.set_defaults(function=_pretrain)
    command = commands.add_parser("run")
    command.add_argument("--queue", type=Path, required=True, help="file of JSON lines, one for each run")
    command.add_argument("--until", metavar="HH:MM", help="end after the epoch of this time")
    command.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (the default) or cuda")
    command.add_argument("--loaders", type=int, default=0, help="processes that augment; 0: none, a seed reproduces")
    command.add_argument("--discard-state", action="store_true", help="save no state; a killed run starts anew")
    command.add_argument("--discard-final", action="store_true", help="keep no checkpoint of finished runs")
    command.add_argument("--threads", type=int, default=1, help="of a training, 1 by default: two trainings beat one")
    command.add_argument("--graphs", action="store_true", help="run a step's passes as CUDA graphs")
    command.set_defaults(function=_run)
    command = commands.add_parser("report")
    command.add_argument("results", nargs="*", type=Path, help="by default this machine's")
    command.add_argument("--output", type=Path, default=RESULTS, help="without its endings; its results are kept")
    command.set_defaults(function=_report)
    command = commands.add_parser("reproduce")
    command.add_argument(
        "--queue", type=Path, default=HUNDRED_EPOCHS, help="of the runs; by default 100 epochs of each"
    )
    command.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda (the default) or cpu")
    command.add_argument("--workers", type=int, default=1, help="trainings at a time")
    command.add_argument("--loaders", type=int, default=4, help="processes that augment, of each training")
    command.add_argument("--processes", type=int, default=available_cores(), help="of preprocessing")
    command.add_argument("--graphs", action="store_true", help="run a step's passes as CUDA graphs")
    command.add_argument("--output", type=Path, help="report, without endings; by default beside the results")
    command.set_defaults(function=_reproduce)
    arguments = parser.parse_args(words)
    try:
        arguments.function(arguments)
    except (RefusedError, FolderInUse) as error:
        raise SystemExit(str(error)) from None
