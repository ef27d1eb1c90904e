"""Run a function over many items in processes of this machine, one of which may die."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ._processes import exit_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
# items that kill their process one after the other, none having succeeded, before all is given up
HOPELESS = 3


@dataclass(frozen=True)
class WorkerDied:
    """The process that worked on an item was killed, most often because memory ran out."""


class Engine(Protocol):
    """What runs the work; its results come in any order. Another engine (Dask, SLURM) needs this method only."""

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield each item with the function's result, or with ``WorkerDied``."""


class SpawnedPool(ProcessPoolExecutor):
    """Spawned processes: forked ones can crash, because blosc2 and torch run threads.

    When one dies all others end. Python's pool ends those that are there; for one that ``submit`` is starting
    meanwhile it waits forever, or ``submit`` raises an OSError about its closed pipe.

    Args:
        processes: number of processes.
        initializer: called in each of them first.
    """

    def __init__(self, processes: int, initializer: Callable[[], object] = exit_with_parent) -> None:
        context = _Context()
        super().__init__(processes, mp_context=context, initializer=initializer)
        self._all = context.processes

    def submit(self, function: Callable[..., Result], /, *args: Any, **options: Any) -> Future[Result]:
        try:
            return super().submit(function, *args, **options)
        except OSError as error:
            if all(process.exitcode is None for process in self._all if process.pid is not None):
                raise  # none has died, so that it is this machine that starts no more
            raise BrokenProcessPool(f"a process could not be started: {error}") from error

    def end(self) -> None:
        """End all processes, after one of them has died."""
        for process in self._all:
            if process.pid is not None:
                process.terminate()
        self.shutdown(cancel_futures=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if isinstance(error, BrokenProcessPool):
            self.end()
        return super().__exit__(kind, error, trace)


class _Context(SpawnContext):
    """Knows the processes that it creates."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # a class there
        self.processes.append(SpawnProcess(*args, **options))
        return self.processes[-1]


class LocalProcesses:
    """Processes on this machine.

    When a process dies, all items that were being worked on are tried again one by one, so that exactly the item that
    kills its process is lost. The processes stay for the next ``run``; leaving the context ends them.

    Args:
        processes: number of processes.

    Examples:
        >>> with LocalProcesses(2) as engine:
        ...     for file, size in engine.run(os.path.getsize, files):
        ...         print(file, size)
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: SpawnedPool | None = None

    def __enter__(self) -> LocalProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | WorkerDied]]:
        """Yield each item with its result.

        Raises:
            RuntimeError: if the first processes all die.
        """
        waiting, suspects = deque(items), deque[Item]()
        succeeded, died = 0, 0
        while waiting or suspects:
            queue = suspects or waiting
            # one item more than processes, so that none has to wait
            ahead = 1 if suspects else self.processes + 1
            running: dict[Future[Result], Item] = {}
            try:
                while queue or running:
                    while queue and len(running) < ahead:
                        running[self._started().submit(function, queue[0])] = queue[0]
                        queue.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                        result = future.result()
                        succeeded += 1
                        yield running.pop(future), result
            except BrokenProcessPool as error:
                self._started().end()
                self._pool = None
                if ahead > 1:
                    suspects.extend(running.values())
                    continue
                died += 1
                if not succeeded and died >= min(HOPELESS, died + len(waiting) + len(suspects)):
                    raise RuntimeError(
                        "a worker process was killed, most often because memory ran out: use fewer --processes. (A "
                        "script must call prepare under `if __name__ == '__main__':`.)"
                    ) from error
                yield from ((item, WorkerDied()) for item in running.values())

    def _started(self) -> SpawnedPool:
        if self._pool is None:
            self._pool = SpawnedPool(self.processes, _begin)
        return self._pool

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin() -> None:
    """Begin a worker, which prints nothing: nnU-Net's readers print what their errors say, and more."""
    exit_with_parent()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
