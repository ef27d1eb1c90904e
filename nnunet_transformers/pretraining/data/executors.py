"""Engines that prepare images on several machines, which share the folders: Dask, and SLURM's arrays by submitit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ..._workers import Engine, Item, Result, WorkerDied

# items that are handed out before their results are taken
AHEAD = 256
# items of a job of SLURM, so that its start and the import of this package, which take half a minute, do not count
PER_JOB = 64


def open_engine(name: str, processes: int, logs: Path, held: ExitStack) -> Engine | None:
    """Open the engine of ``--executor``.

    Args:
        name: ``local``; ``dask``, a cluster on this machine; ``dask:ADDRESS``, such as ``dask:tcp://node1:8786``, of
            a running scheduler; ``slurm``, or with submitit's parameters ``slurm:slurm_partition=cpu,timeout_min=240``.
        processes: processes, or jobs at a time.
        logs: folder of submitit's files.
        held: what is closed at the end.

    Returns:
        the engine; None for ``local``.

    Raises:
        ValueError: if there is no such engine, or a parameter is no NAME=VALUE.
        ModuleNotFoundError: if its package is not installed.
    """
    kind, _, rest = name.partition(":")
    if kind == "local" and not rest:
        return None
    if kind == "dask":
        distributed = _package("distributed", "dask")
        # one thread each: blosc2 and SimpleITK are not made for several
        cluster = {"address": rest} if rest else {"n_workers": processes, "threads_per_worker": 1}
        client = held.enter_context(distributed.Client(**cluster))
        return FuturesEngine(client.get_executor(pure=False), (distributed.KilledWorker,))
    if kind == "slurm":
        executor = _package("submitit", "slurm").AutoExecutor(folder=logs)
        executor.update_parameters(slurm_array_parallelism=processes, **_parameters(rest))
        return JobEngine(executor)
    raise ValueError(f"--executor must be local, dask, dask:ADDRESS, slurm or slurm:NAME=VALUE,..., got {name!r}")


class FuturesEngine:
    """Engine over an executor of Python's ``concurrent.futures``, such as that of a Dask client.

    Args:
        executor: the executor, which tries items again whose worker has died.
        died: errors that mean that an item has killed its workers.
    """

    def __init__(self, executor: Executor, died: tuple[type[BaseException], ...] = ()) -> None:
        self.executor, self.died = executor, died

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield each item with its result."""
        waiting, running = deque(items), dict[Future[Result], Item]()
        while waiting or running:
            while waiting and len(running) < AHEAD:
                item = waiting.popleft()
                running[self.executor.submit(function, item)] = item
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                item = running.pop(future)
                try:
                    result: Result | WorkerDied = future.result()
                except self.died:
                    result = WorkerDied()
                yield item, result


class JobEngine:
    """Engine over submitit's jobs of many items each. Items of a job that dies are tried again in jobs of their own.

    Args:
        executor: submitit's executor.
        per_job: items of a job.
    """

    def __init__(self, executor: Any, per_job: int = PER_JOB) -> None:
        self.executor, self.per_job = executor, per_job

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield each item with its result."""
        suspects: list[Item] = []
        for part, results in self._jobs(function, list(items), self.per_job):
            if results is None:
                suspects.extend(part)
            else:
                yield from zip(part, results, strict=True)
        for part, results in self._jobs(function, suspects, 1):
            yield part[0], WorkerDied() if results is None else results[0]

    def _jobs(
        self, function: Callable[[Item], Result], items: Sequence[Item], size: int
    ) -> Iterator[tuple[Sequence[Item], list[Result] | None]]:
        """Run jobs of some items each; yield the items with their results, None for a job that died."""
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        if not parts:
            return
        submitit = import_module("submitit")
        jobs = self.executor.map_array(partial(_run_all, function), parts)
        parts_of = {id(job): part for job, part in zip(jobs, parts, strict=True)}
        for job in submitit.helpers.as_completed(jobs, poll_frequency=2):
            try:
                yield parts_of[id(job)], job.result()
            except submitit.core.utils.UncompletedJobError:
                yield parts_of[id(job)], None


def _run_all(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _parameters(text: str) -> dict[str, Any]:
    """Parse ``NAME=VALUE,...``; whole numbers become such."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"--executor slurm takes NAME=VALUE, such as timeout_min=240, got {part!r}")
        found[name] = int(value) if value.isdigit() else value
    return found


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--executor {extra} needs the package {name}: pip install 'nnunet-transformers[{extra}]'", name=name
        ) from error
