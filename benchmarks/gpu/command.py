"""Options, the order of the steps, and their time limits."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnunet_transformers._atomic import write_json

from . import __doc__ as description
from .report import markdown
from .rows import PACKAGES, Row, is_installed, planner_of, rows_of
from .workers import RowFailed, Worker

# seconds that a step and one of its rows may take, in the order in which steps run
STEPS = {
    "facts": (40, 40),
    "kernels": (90, 30),
    "eager": (200, 45),
    "memory": (120, 40),
    "profile": (90, 30),
    "prediction": (180, 60),
    "graphs": (120, 45),
    "flex": (240, 90),
    "compile": (420, 240),
}
FUNCTIONS = {step: f"{__package__}.{step}:{step}" for step in STEPS}
FUNCTIONS["eager"] = f"{__package__}.training:eager"
FUNCTIONS["graphs"] = f"{__package__}.prediction:graphs"
PREPARE, COMPILED = (f"{__package__}.training:{name}" for name in ("prepare_compiled", "compiled"))
ESTIMATE = f"{__package__}.memory:estimate"
OUTPUT = Path(__file__).parents[1] / "results" / "gpu"
# what a dry run, without a driver, has instead
TINY_PRECISIONS = ("float32",)


class Results:
    """Rows by key in a folder's ``gpu.json``, with ``gpu.md`` beside it; written after each row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "gpu.json"
        self.rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}

    def has(self, row: Row) -> bool:
        """Whether the row was measured; one that failed was not."""
        return "error" not in self.rows.get(row.key, {"error": ""})

    def add(self, row: Row, figures: dict[str, Any]) -> None:
        """Keep a row's figures, or ``error``."""
        self.rows[row.key] = {**row.described(), **figures}
        write_json(self.rows, self.folder / "gpu.json")
        (self.folder / "gpu.md").write_text(markdown(self.rows))
        said = figures.get("error") or ", ".join(
            f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, float)
        )
        print(f"{time.strftime('%H:%M:%S')} {row.key}: {said}", flush=True)


class Clock:
    """The time that is left to a step and to its rows."""

    def __init__(self, step: str, end: float, tiny: bool) -> None:
        # a dry run is about faults, on machines that are busy
        seconds, self.row_seconds = (10 * limit if tiny else limit for limit in STEPS[step])
        self.end = min(time.monotonic() + seconds, end)

    def left(self) -> float:
        """Seconds that the next row may take; none if they are no more than a second."""
        left = min(self.row_seconds, self.end - time.monotonic())
        return left if left > 1 else 0.0


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a row, or ``error``."""
    try:
        return measure()
    except RowFailed as failure:
        return {"error": str(failure)}


def in_turn(rows: Sequence[Row], results: Results, clock: Clock, worker: Worker) -> None:
    """Measure one row after the other."""
    for row in rows:
        if seconds := clock.left():
            results.add(row, attempt(lambda: worker.run(FUNCTIONS[row.step], row, seconds)))  # noqa: B023


def with_estimates(rows: Sequence[Row], results: Results, clock: Clock, worker: Worker, parallel: int) -> None:
    """Measure the memory of rows, while other processes trace the planner's estimates on the CPU."""
    with ExitStack() as stack:
        tracers = [stack.enter_context(Worker()) for _ in rows[:parallel]]
        for start in range(0, len(rows), max(1, parallel)):
            group = rows[start : start + max(1, parallel)]
            if not (seconds := clock.left()):
                return
            for tracer, row in zip(tracers, group, strict=False):
                tracer.start(ESTIMATE, row, seconds)
            measured = [attempt(lambda: worker.run(FUNCTIONS["memory"], row, seconds)) for row in group]  # noqa: B023
            for tracer, row, figures in zip(tracers, group, measured, strict=False):
                estimated = attempt(tracer.result)
                errors = [f["error"] for f in (figures, estimated) if "error" in f]
                results.add(row, {**figures, **estimated, **({"error": "; ".join(errors)} if errors else {})})


def compiled(rows: Sequence[Row], results: Results, clock: Clock, parallel: int) -> None:
    """Compile several networks at once, then time one after the other."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, parallel))))
    for start in range(0, len(rows), max(1, parallel)):
        group = rows[start : start + max(1, parallel)]
        if not (seconds := clock.left()):
            return
        with ExitStack() as stack:
            workers = [stack.enter_context(Worker()) for _ in group]
            for worker, row in zip(workers, group, strict=True):
                worker.start(PREPARE, row, seconds)
            prepared = [attempt(worker.result) for worker in workers]
            for worker, row, figures in zip(workers, group, prepared, strict=True):
                if "error" not in figures:
                    figures |= attempt(lambda: worker.run(COMPILED, row, max(5.0, clock.left())))  # noqa: B023
                results.add(row, figures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps that the command line names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS), help="names, separated by commas")
    parser.add_argument("--limit-seconds", type=float, default=35 * 60.0, help="of the whole call")
    parser.add_argument("--networks", default="", help="names, separated by commas; by default one of each family")
    parser.add_argument("--precisions", default="float16,bfloat16", help="of the steps eager and compile")
    parser.add_argument("--parallel", type=int, default=8, help="processes that compile, or estimate, at once")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a dry run at small sizes, in float32")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.limit_seconds
    names = [name for name in given.steps.split(",") if name]
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    precisions = TINY_PRECISIONS if given.tiny else tuple(given.precisions.split(","))
    networks = tuple(name for name in given.networks.split(",") if name)
    for name in (name for name in networks or PACKAGES if not is_installed(name)):
        print(f"{name} is skipped: pip install {PACKAGES[name]}", flush=True)
    results = Results(given.output)
    with Worker() as worker:
        for step in (name for name in STEPS if name in names):
            planned = rows_of(step, given.device, given.tiny, networks, precisions)
            rows = [row for row in planned if not results.has(row)]
            clock = Clock(step, end, given.tiny)
            if step == "memory":
                with_estimates([row for row in rows if planner_of(row.network)], results, clock, worker, given.parallel)
            elif step == "compile":
                worker.stop()  # frees its memory
                compiled(rows, results, clock, given.parallel)
            else:
                in_turn(rows, results, clock, worker)
            if left := [row.key for row in rows if row.key not in results.rows]:
                print(f"{step}: no time for {len(left)} of {len(planned)} rows: {', '.join(left)}", flush=True)
