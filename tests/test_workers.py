"""Processes of which one dies: every item has a result, and only the deadly one is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from nnunet_transformers._workers import LocalProcesses, WorkerDied


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


def test_all_die():
    with LocalProcesses(2) as engine, pytest.raises(RuntimeError, match="fewer --processes"):
        list(engine.run(die, range(10)))


def test_errors_are_not_hidden():
    with LocalProcesses(2) as engine, pytest.raises(KeyError):
        list(engine.run(fail, range(3)))
