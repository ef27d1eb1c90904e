"""Pretrainings, also in parts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks.accuracy import pretrain as pretrain_module
from benchmarks.accuracy import tables, timed
from benchmarks.accuracy.command import main
from benchmarks.accuracy.prepare import prepare
from benchmarks.accuracy.runs import pretraining_file, read_lines, work_folder
from benchmarks.accuracy.tables import DATA, ROWS
from benchmarks.accuracy.timed import store_times
from benchmarks.accuracy.trainer import make_trainer
from nnunet_transformers._reading import read_json
from nnunet_transformers.cli import app
from nnunet_transformers.plans.plan_files import load_plans
from nnunet_transformers.pretraining.methods.mae import MAE

from ...conftest import write_dataset
from .helpers import BALLS, FOLDER


class TestPretrain:
    def test_killed_one_goes_on(self, fresh, monkeypatch):
        """From its state, at the step of it; the time of both parts counts, and what is complete is not repeated."""
        settings = {"data.init_args.batch_size": 1, "data.init_args.samples_per_epoch": 2}
        settings |= {"model.init_args.mask_size": 4, "model.init_args.warmup_epochs": 1, "trainer.max_epochs": 2}
        given = replace(tables.PRETRAININGS["mit_mae"], settings=settings)
        monkeypatch.setitem(tables.PRETRAININGS, "mit_mae", given)
        prepare(BALLS, [ROWS["mit"]])
        train, steps, commands, to_fail = MAE.training_step, [], [], {"fit", "attach"}
        by_a_process = subprocess.run

        def kill(module, *arguments):
            steps.append(module.global_step)
            if module.global_step == 3 and "fit" in to_fail:
                to_fail.remove("fit")
                raise KeyError("killed")
            return train(module, *arguments)

        def run(words, check):
            """The command in this process, where all is imported; a part of the pretraining takes a second."""
            place = next(index for index, word in enumerate(words) if word in ("pretrain", "attach"))
            command = next(word for word in ("prepare", "fit", "attach") if word in words[place : place + 2])
            commands.append((command, "last" in words))
            if command in to_fail - {"fit"}:
                to_fail.remove("attach")
                return SimpleNamespace(returncode=1)
            if command == "fit":
                used = read_json(words[place - 1])
                used |= {key: used[key] + 1 for key in ("seconds", "processor_seconds")}
                Path(words[place - 1]).write_text(json.dumps(used))
            return SimpleNamespace(returncode=CliRunner().invoke(app, words[place:]).exit_code)

        monkeypatch.setattr(MAE, "training_step", kill)
        monkeypatch.setattr(pretrain_module.subprocess, "run", run)
        monkeypatch.setattr(pretrain_module, "measure", lambda row, dataset: {"seconds": 0.001})
        words = ["pretrain", "mit_mae"]
        with pytest.raises(SystemExit, match=r"^`nnunet-transformers pretrain fit` failed with status 1, .*goes on"):
            main(words)
        with pytest.raises(SystemExit, match=r"^`nnunet-transformers attach \S*encoder.pth` failed with status 1"):
            main(words)
        main(words)
        first, second = ([("prepare", False), ("fit", is_continued)] for is_continued in (False, True))
        assert commands == [*first, *second, *[("attach", False)] * 2]
        assert steps == [0, 1, 2, 3, 2, 3]
        (record,) = read_lines(pretraining_file())
        assert (record["seconds"], record["processor_seconds"], record["units"]) == (2, 2, 1)
        assert load_plans(fresh / "preprocessed" / BALLS.dataset, ROWS["mit_mae"].plans)
        # what `run` trains starts from it, though it initialises the network before, to compare it with its cost
        monkeypatch.setattr(subprocess, "run", by_a_process)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        trainer = make_trainer(ROWS["mit_mae"], BALLS, 0, 0, 2)
        trainer.initialize()
        trainer.on_train_start()
        assert "MAE of mit" in Path(trainer.log_file).read_text()
        # settings that have changed since
        monkeypatch.setitem(tables.PRETRAININGS, "mit_mae", replace(given, settings={}))
        with pytest.raises(SystemExit, match=r"mit_mae holds a run with other settings, see used.json there; move it"):
            main(words)
        (work_folder() / "pretraining" / "mit_mae" / "used.json").unlink()
        with pytest.raises(SystemExit, match=r"mit_mae holds a run whose time is not known; move it away"):
            main(words)

    @pytest.mark.parametrize(("row", "plan"), [("mit", "nnUNetPlans"), ("stock", "nnUNetMiT7Plans")])
    def test_without_plans(self, fresh, monkeypatch, row, plan):
        """Of its network, and of the reference, which gives its cost: said before it trains."""
        monkeypatch.setitem(DATA, "hippocampus", replace(BALLS, dataset="Dataset901_Others"))
        write_dataset(fresh / "raw", "Dataset901_Others", cases=5)
        try:
            prepare(DATA["hippocampus"], [ROWS[row]])
            with pytest.raises(SystemExit, match=rf"{plan}.json is missing; `python -m benchmarks.accuracy prepare`"):
                main(["pretrain", "mit_mae"])
        finally:
            for name in ("raw", "preprocessed"):
                shutil.rmtree(fresh / name / "Dataset901_Others")

    def test_curve_of_parts(self, tmp_path):
        """Steps that a part repeats are its own."""
        parts = {"version_10": "1,,19\n2,5,29\n", "version_2": "1,4,9\n1,8,19\n1,3,29\n"}
        for name, lines in parts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "metrics.csv").write_text(f"epoch,loss,step\n{lines}")
        assert pretrain_module.curve(tmp_path) == {"loss": [[9, 4.0], [19, 8.0], [29, 5.0]]}

    def test_time_of_a_process(self, tmp_path):
        """Is added to that of those before, also where it is not at its end."""
        file, before = tmp_path / "used.json", {"seconds": 1000, "processor_seconds": 100, "device": "cpu"}
        file.write_text(json.dumps(before))
        with pytest.MonkeyPatch.context() as at_end:
            ends = []
            at_end.setattr(timed.atexit, "register", ends.append)
            store_times(file, every=0.05)
        end = time.time() + 30
        while read_json(file) == before and time.time() < end:
            time.sleep(0.01)
        during = read_json(file)
        ends[0]()
        after = read_json(file)
        assert 1000 <= during["seconds"] <= after["seconds"] < 1100
        # of this process since its start
        assert 100 < during["processor_seconds"] <= after["processor_seconds"]
        assert after["processor_seconds"] == pytest.approx(100 + sum(os.times()[:4]), abs=1)
        assert after["device"] == "cpu"

    def test_command_in_a_process(self, tmp_path):
        """It stores its time at its end, also of a command that fails."""
        file = tmp_path / "used.json"
        file.write_text('{"seconds": 0, "processor_seconds": 0}')
        words = [sys.executable, *pretrain_module.RUN_TIMED, str(file), "pretrain", "nothing"]
        ended = subprocess.run(words, capture_output=True, text=True, cwd=FOLDER.parents[1])
        assert ended.returncode == 1
        assert "no command 'nothing'" in ended.stderr
        assert 0 < read_json(file)["processor_seconds"] < 60
