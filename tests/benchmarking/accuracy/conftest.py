"""nnU-Net's folders with the drawn dataset."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.accuracy import costs, trainer
from benchmarks.accuracy.command import main
from benchmarks.accuracy.runs import read_lines, results_file, work_folder
from benchmarks.accuracy.tables import DATA

from ...conftest import light_nnunet, set_nnunet_folders, write_dataset
from .helpers import BALLS


@pytest.fixture(scope="class")
def folders(tmp_path_factory):
    """nnU-Net's folders with a dataset that is prepared, on which stock nnU-Net is calibrated."""
    folders = tmp_path_factory.mktemp("accuracy")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        set_nnunet_folders(folders, monkeypatch)
        monkeypatch.setitem(DATA, "hippocampus", BALLS)
        # of a quarter of the unit, the reference has two iterations: two epochs of one
        monkeypatch.setattr(costs, "UNIT_ITERATIONS", 8)
        monkeypatch.setattr(trainer, "EPOCHS", 2)
        monkeypatch.setattr(costs, "MEASURED", 1)
        monkeypatch.setattr(costs, "WARM_UP", 0)
        # without a process of its own, which would import everything
        monkeypatch.setattr(costs, "ProcessPoolExecutor", lambda processes, *_: ThreadPoolExecutor(processes))
        write_dataset(folders / "raw", cases=5)
        words = ["--datasets", "hippocampus", "--rows", "stock"]
        main(["prepare", *words])
        main(["calibrate", *words])
        # as measured, but for what would differ from one test run to the next
        (measured,) = read_lines(costs.costs_file())
        assert measured.pop("seconds") > 0
        costs.costs_file().write_text(json.dumps({**measured, "seconds": 1.0}) + "\n")
        yield folders


@pytest.fixture
def fresh(folders, monkeypatch):
    """The same without finished runs."""
    set_nnunet_folders(folders, monkeypatch)
    results_file().unlink(missing_ok=True)
    for run in work_folder().glob("*-*"):
        shutil.rmtree(run)
    return folders
