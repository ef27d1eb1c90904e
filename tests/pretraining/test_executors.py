"""Engines over executors: of Python here, of Dask and SLURM (submitit's local jobs) where they are installed."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from nnunet_transformers._workers import WorkerDied
from nnunet_transformers.pretraining.data import executors
from nnunet_transformers.pretraining.data.executors import FuturesEngine, open_engine
from nnunet_transformers.pretraining.data.prepare import prepare
from tests.conftest import write_dataset


def square(item):
    return item * item


def square_or_die(marker: Path, item: int):
    """Kill the process at 7, the first time, and at 11, always."""
    if item == 11 or (item == 7 and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


class TestFutures:
    def test_prepares_the_same(self, tmp_path):
        source = write_dataset(tmp_path / "raw", cases=4)
        with ThreadPoolExecutor(2) as pool:
            stored = prepare(source, tmp_path / "futures", engine=FuturesEngine(pool))
        assert stored == prepare(source, tmp_path / "local")

    def test_each_item_once_however_many(self, monkeypatch):
        monkeypatch.setattr(executors, "AHEAD", 3)
        with ThreadPoolExecutor(2) as pool:
            found = list(FuturesEngine(pool).run(square, range(50)))
        assert sorted(found) == [(i, i * i) for i in range(50)]

    def test_errors(self):
        def fail(item):
            raise (MemoryError if item == 2 else KeyError)(item)

        with ThreadPoolExecutor(1) as pool:
            engine = FuturesEngine(pool, (MemoryError,))
            assert list(engine.run(fail, [2])) == [(2, WorkerDied())]
            with pytest.raises(KeyError):
                list(engine.run(fail, [1]))


class TestOpen:
    def test_local(self, tmp_path):
        with ExitStack() as held:
            assert open_engine("local", 2, tmp_path, held) is None

    @pytest.mark.parametrize("name", ["pbs", "local:2", ""])
    def test_unknown(self, name, tmp_path):
        with (
            ExitStack() as held,
            pytest.raises(ValueError, match="--executor must be local, dask, dask:ADDR"),
        ):
            open_engine(name, 2, tmp_path, held)

    @pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("slurm", "submitit")])
    def test_missing_package(self, name, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)  # Python then finds no such package, installed or not
        with (
            ExitStack() as held,
            pytest.raises(ModuleNotFoundError, match=rf"needs the package {package}: pip"),
        ):
            open_engine(name, 2, tmp_path, held)

    def test_parameters_of_slurm(self):
        assert executors._parameters("slurm_partition=cpu,timeout_min=240") == {
            "slurm_partition": "cpu",
            "timeout_min": 240,
        }
        with pytest.raises(ValueError, match="takes NAME=VALUE, such as timeout_min=240, got 'cpu'"):
            executors._parameters("cpu")


@pytest.mark.parametrize(("name", "package"), [("dask", "distributed"), ("slurm:timeout_min=5", "submitit")])
def test_a_worker_that_is_killed_costs_only_what_kills_it(name, package, tmp_path):
    pytest.importorskip(package)
    with ExitStack() as held:
        engine = open_engine(name, 2, tmp_path / "jobs", held)
        found = dict(engine.run(partial(square_or_die, tmp_path / "marker"), range(20)))
    assert found == {i: WorkerDied() if i == 11 else i * i for i in range(20)}
