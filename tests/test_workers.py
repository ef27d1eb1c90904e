"""Processes of which one dies: every item has a result, and only the deadly one is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from pathlib import Path
from unittest.mock import Mock

import pytest

from nnunet_transformers._workers import LocalProcesses, SpawnedPool, WorkerDied


def square(number: int) -> int:
    return number * number


def square_or_die(number: int) -> int:
    if number in (3, 7):
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    raise KeyError(number)


def results(function: Callable[[int], int], processes: int = 2) -> dict[int, object]:
    with LocalProcesses(processes) as engine:
        found = list(engine.run(function, range(10)))
    assert len(found) == 10
    return dict(found)


def test_all_results():
    assert results(square) == {number: number**2 for number in range(10)}


@pytest.mark.parametrize("processes", [1, 3])
def test_only_what_kills_is_lost(processes):
    found = results(square_or_die, processes)
    assert {number for number, result in found.items() if result == WorkerDied()} == {3, 7}
    assert all(found[number] == number**2 for number in range(10) if number not in (3, 7))


def die_when_told(folder: Path) -> None:
    (folder / "begun").touch()
    wait_for(folder / "told")
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)


@pytest.mark.parametrize("is_started", [False, True])
def test_a_process_that_starts_while_another_dies(monkeypatch, tmp_path, is_started):
    """It ends as well; without that the pool would wait for it for ever."""
    made, start = [], SpawnProcess.start

    def start_late(process):
        made.append(process)
        if process is made[0]:
            start(process)
            return
        wait_for(tmp_path / "begun")
        if is_started:
            start(process)
        (tmp_path / "told").touch()
        made[0].join()
        time.sleep(0.5)  # until the pool has noticed
        if not is_started:
            start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_late)
    with pytest.raises(BrokenProcessPool), SpawnedPool(2) as pool:
        first, _ = pool.submit(die_when_told, tmp_path), pool.submit(square, 3)
        first.result()
    assert len(made) == 2 and not any(process.pid and process.is_alive() for process in made)


def test_a_machine_that_starts_no_more_processes(monkeypatch):
    """It is an error, rather than a process that has died, after which all would be tried again."""
    monkeypatch.setattr(SpawnProcess, "start", Mock(side_effect=OSError("too many processes")))
    with pytest.raises(OSError, match="too many processes"):
        results(square)


def test_all_die():
    with LocalProcesses(2) as engine, pytest.raises(RuntimeError, match="fewer --processes"):
        list(engine.run(die, range(10)))


def test_errors_are_not_hidden():
    with LocalProcesses(2) as engine, pytest.raises(KeyError):
        list(engine.run(fail, range(3)))
