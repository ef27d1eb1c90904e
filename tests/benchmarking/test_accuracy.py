"""The benchmark of Dice at equal cost, on a drawn dataset."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.utilities.crossval_split import generate_crossval_split
from typer.testing import CliRunner

from benchmarks.accuracy import command, costs, execute, reproduce, tables, timed, trainer
from benchmarks.accuracy import prepare as prepare_module
from benchmarks.accuracy import pretrain as pretrain_module
from benchmarks.accuracy.command import main, next_time
from benchmarks.accuracy.prepare import grouped_split, prepare, write_split
from benchmarks.accuracy.report import difference, draw, elsewhere, table
from benchmarks.accuracy.reproduce import rows_of, run_in_processes
from benchmarks.accuracy.runs import (
    FOLDERS,
    Run,
    append_line,
    pretraining_file,
    read_lines,
    read_queue,
    read_runs,
    results_file,
    work_folder,
)
from benchmarks.accuracy.tables import DATA, JUDGED_FOLD, ROWS, TUNED_FOLDS, Data, Row
from benchmarks.accuracy.timed import store_times
from nnunet_transformers._lease import FolderInUse, lease
from nnunet_transformers._reading import RefusedError, read_json
from nnunet_transformers.cli import app
from nnunet_transformers.plans.plan_files import load_plans
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.pretraining.methods.mae import MAE

from ..conftest import light_nnunet, set_nnunet_folders, write_dataset

FOLDER = Path(tables.__file__).parent
BALLS = Data("Dataset900_Balls", "3d_fullres", largest_batch=2)
STOCK = Run("hippocampus", "stock", "quarter", 0, 0)


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


def write_queue(path, *runs):
    path.write_text("".join(json.dumps(vars(run)) + "\n" for run in runs))
    return path


def never():
    return False


def wait_for_a_signal(words):
    """Work of a process: its file, which says that a signal ended it."""
    file = Path(words[0], str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda number, frame: file.write_text("ended"))
    file.touch()
    end = time.time() + 30
    while not file.read_text() and time.time() < end:
        time.sleep(0.05)


class TestQueue:
    def test_prepare_calibrate_run_report(self, fresh, monkeypatch):
        monkeypatch.setattr(command.os, "nice", lambda by: by, raising=False)
        monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        main(["run", "--queue", str(queue)])
        (record,) = read_lines(results_file())
        assert (record["iterations"], record["epochs"], record["batch_size"]) == (2, 2, 2)
        assert len(record["curve"]["pseudo_dice"]) == len(record["curve"]["processor_seconds"]) == 2
        assert record["curve"]["processor_seconds"][-1] == pytest.approx(record["processor_seconds"], abs=0.1)
        assert list(record["dice_per_label"]) == ["large", "small"]
        cases = list(record["dice_per_case"].values())
        assert len(cases) == 1
        assert np.mean(cases) == pytest.approx(record["dice"], abs=1e-4)
        final = next((work_folder() / STOCK.name).rglob("checkpoint_*.pth"))
        assert final.name == "checkpoint_final.pth"
        assert torch.load(final, weights_only=False)["optimizer_state"]["state"] == {}

        # a finished run is not made again
        main(["run", "--queue", str(queue)])
        assert len(read_lines(results_file())) == 1
        main(["report", "--output", str(fresh / "page")])
        assert "| PlainConvUNet | 1 |" in (fresh / "page.md").read_text()
        assert (fresh / "page.png").stat().st_size > 1000
        # results that this machine lacks are kept
        results_file().unlink()
        main(["report", "--output", str(fresh / "page")])
        assert read_lines(fresh / "page.jsonl") == [record]

    def test_labelled_cases(self, fresh, monkeypatch):
        """Drawn by the seed from the fold's training cases; the validation cases stay."""
        monkeypatch.setitem(DATA, "hippocampus_ten", replace(BALLS, labelled=2, costs_as="hippocampus"))
        assert costs.iterations_for("quarter", "stock", "hippocampus_ten") == 2
        drawn = []
        for seed, data in ((0, DATA["hippocampus"]), (0, DATA["hippocampus_ten"]), (3, DATA["hippocampus_ten"])):
            with pytest.MonkeyPatch.context() as results:
                results.setenv("nnUNet_results", str(fresh / "elsewhere"))
                drawn.append(trainer.make_trainer(ROWS["stock"], data, 0, seed, 2).do_split())
        (every, held_out), (some, same), (others, _) = drawn
        assert len(every) == 4
        assert len(some) == len(others) == 2
        assert set(some) | set(others) <= set(every)
        assert some != others
        assert held_out == same

    def test_labelled_patients(self, monkeypatch):
        """All cases of a drawn patient."""
        cases = [f"patient{patient:03}_{phase}" for patient in range(6) for phase in ("ED", "ES")]
        monkeypatch.setattr(trainer.nnUNetTrainer, "do_split", lambda self: (cases, ["patient9_ED"]))
        network = trainer.Measured.__new__(trainer.Measured)
        network.labelled, network.group = 2, r"patient\d+"
        drawn, held_out = network.do_split()
        assert held_out == ["patient9_ED"]
        assert [case.partition("_")[2] for case in drawn] == ["ED", "ES"] * 2
        assert len({case.partition("_")[0] for case in drawn}) == 2

    def test_stopped_run_goes_on(self, fresh):
        """What it becomes is that of an uninterrupted one."""
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        asked = chain(repeat(False, 1), repeat(True))  # before the run, and from its first epoch on
        assert execute.run_queue(queue, lambda: next(asked)) == []
        assert read_lines(results_file()) == []
        assert list((work_folder() / STOCK.name).rglob("checkpoint_latest.pth"))
        curves = []
        for _ in range(2):
            assert execute.run_queue(queue, never) == []
            (record,) = read_lines(results_file())
            curves.append((record["curve"]["train_loss"], record["dice_per_case"]))
            results_file().unlink()
            shutil.rmtree(work_folder() / STOCK.name)
        assert len(curves[0][0]) == 2
        assert curves[0] == curves[1]

    def test_stateless(self, fresh):
        """A stopped run leaves no state where none is asked for; its loaders are processes of their own."""
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        asked = chain(repeat(False, 1), repeat(True))
        assert execute.run_queue(queue, lambda: next(asked), execute.How(loaders=1, keeps_state=False)) == []
        assert (work_folder() / STOCK.name).is_dir()
        assert not list(work_folder().rglob("*.pth"))

    def test_warm_up_of_primus(self, fresh):
        """Its length follows that of the training, and a training goes on in it."""
        primus, continued = (trainer.make_trainer(ROWS["primus_v3_s"], BALLS, 0, 0, 2) for _ in range(2))
        assert (primus.warmup_duration_whole_net, primus.num_epochs) == (1, 2)
        primus.initialize()
        primus.logger.log("train_losses", np.float64(1), 0)  # what PyTorch refuses by default
        primus.save_checkpoint(str(Path(primus.output_folder) / "checkpoint_latest.pth"))
        maybe_load_checkpoint(continued, continue_training=True, validation_only=False)
        assert (continued.current_epoch, continued.training_stage) == (1, "train")

    def test_unknown_attribute(self, fresh):
        row = replace(ROWS["stock"], attributes={"initial_rate": 1.0})
        with pytest.raises(ValueError, match="nnUNetTrainer has no attribute initial_rate"):
            trainer.make_trainer(row, BALLS, 0, 0, 2)

    def test_discard_final(self, tmp_path):
        (tmp_path / "fold_0").mkdir()
        torch.save({}, tmp_path / "fold_0" / "checkpoint_final.pth")
        execute.tidy(tmp_path, keep_final=False)
        assert not list(tmp_path.rglob("*.pth"))

    def test_runners_share_a_queue(self, fresh, monkeypatch):
        held, broken, free = (Run("hippocampus", "stock", "quarter", 0, seed) for seed in range(3))
        executed = []

        def record(run, folder, is_stopped, how):
            executed.append(run)
            if run == broken:
                raise RuntimeError("broken")
            return {**vars(run), "dice": 1.0}

        monkeypatch.setattr(execute, "execute", record)
        queue = write_queue(fresh / "queue.jsonl", held, broken, free)
        folder = work_folder() / held.name
        with lease(folder, folder.with_name(f"{held.name}.lease")):
            assert execute.run_queue(queue, never) == [broken]
        assert executed == [broken, free]
        assert execute.run_queue(queue, never) == [broken]
        assert executed == [broken, free, held, broken]

    @pytest.mark.parametrize("text", ['{"dataset": "hippo', "", None])
    def test_queue_that_is_being_saved(self, fresh, monkeypatch, capsys, text):
        """The runs of before go on, and those that it has when it is readable again."""
        first, second, added = (Run("hippocampus", "stock", "quarter", 0, seed) for seed in range(3))
        queue = write_queue(fresh / "queue.jsonl", first, second)
        executed = []

        def damage(run, *_):
            executed.append(run)
            if run == first:
                queue.unlink() if text is None else queue.write_text(text)
            return vars(run)

        def save(seconds):
            if saves:
                write_queue(queue, first, second, added)

        monkeypatch.setattr(execute, "execute", damage)
        monkeypatch.setattr(execute.time, "sleep", save)
        for saves, expected in ((False, [first, second]), (True, [first, second, added])):
            write_queue(queue, first, second)
            results_file().unlink(missing_ok=True)
            assert execute.run_queue(queue, never) == []
            assert executed == expected
            assert ("goes on with the queue as it was before" in capsys.readouterr().err) is not saves
            executed.clear()

    @pytest.mark.parametrize("split", ["other folds", "other cases", "missing", "damaged"])
    def test_split_of_another_kind(self, fresh, capsys, split):
        """A training on it does not start, and nnU-Net does not write its own."""
        path = fresh / "preprocessed" / BALLS.dataset / "splits_final.json"
        before = path.read_text()
        other = {"other folds": json.dumps(json.loads(before)[::-1]), "other cases": before.replace("ball_4", "ball_9")}
        try:
            path.unlink() if split == "missing" else path.write_text(other.get(split, before[:-9]))
            assert execute.run_queue(write_queue(fresh / "queue.jsonl", STOCK), never) == [STOCK]
            assert path.exists() is not (split == "missing")
        finally:
            path.write_text(before)
        (line,) = capsys.readouterr().err.splitlines()
        assert "splits_final.json is" in line
        assert "`python -m benchmarks.accuracy prepare`" in line or split == "damaged"

    def test_missing_plan(self, fresh):
        for row, made_by in (("resenc_m", "prepare"), ("qt_unet_mae", "pretrain qt_unet_mae")):
            with pytest.raises(RefusedError, match=rf"is missing; `python -m benchmarks.accuracy {made_by}` makes it"):
                trainer.make_trainer(ROWS[row], BALLS, 0, 0, 2)
        stored = fresh / "preprocessed" / BALLS.dataset / "nnUNetPlans_3d_fullres"
        stored.rename(stored.with_name("away"))
        try:
            with pytest.raises(RefusedError, match=r"no preprocessed cases; `python -m benchmarks.accuracy prepare`"):
                trainer.make_trainer(ROWS["stock"], BALLS, 0, 0, 2)
        finally:
            stored.with_name("away").rename(stored)

    @pytest.mark.parametrize("entry", ["cost", "run", "old cost"])
    def test_entry_of_another_plan(self, fresh, capsys, entry):
        """A run beside it does not start; a cost that does not say its plan is taken."""
        (cost,) = [known for known in read_lines(costs.costs_file()) if known["row"] == "stock"]
        before = costs.costs_file().read_text()
        finished = replace(STOCK, seed=1)
        if entry == "run":
            append_line(results_file(), {**vars(replace(STOCK, dataset="em")), "batch_size": 5})
            append_line(results_file(), {**vars(finished), "batch_size": 2, "patch_size": [8, 8, 8]})
        else:
            changed = {**cost, "parameters": 17}
            if entry == "old cost":
                changed = {key: cost[key] for key in ("row", "dataset", "seconds")}
            costs.costs_file().write_text(json.dumps(changed) + "\n")
        try:
            failed = execute.run_queue(write_queue(fresh / "queue.jsonl", STOCK), never)
        finally:
            costs.costs_file().write_text(before)
        if entry == "old cost":
            assert failed == []
            return
        assert failed == [STOCK]
        (line,) = capsys.readouterr().err.splitlines()
        if entry == "run":
            expected = (
                f"results.jsonl: the run {finished.name} is of another plan, with patch_size [8, 8, 8] instead of"
            )
        else:
            expected = "costs.jsonl: the cost of stock on hippocampus is of another plan, with parameters 17 instead of"
        assert expected in line
        assert line.endswith("; remove its line")

    def test_run_that_is_refused(self, fresh, monkeypatch, capsys):
        """It is said in a line, and the others go on."""

        def refuse(run, *_):
            if run.seed == 0:
                raise RefusedError("not prepared")
            return vars(run)

        monkeypatch.setattr(execute, "execute", refuse)
        other = replace(STOCK, seed=1)
        assert execute.run_queue(write_queue(fresh / "queue.jsonl", STOCK, other), never) == [STOCK]
        assert read_runs(results_file()) == [other]
        assert capsys.readouterr().err == f"{STOCK.name}: not prepared\n"

    def test_cost_is_measured_once(self, fresh, monkeypatch):
        """Beside the reference, which takes half of what is stored of it here."""
        seconds = {"stock": 0.5, "mit": 0.25}
        monkeypatch.setattr(costs, "measure", lambda row, dataset: {"seconds": seconds[row]})
        name = work_folder() / "hippocampus-mit.cost"
        with lease(name, name.with_suffix(".lease")), pytest.raises(FolderInUse):
            costs.iterations_for("quarter", "mit", "hippocampus")
        assert costs.iterations_for("quarter", "mit", "hippocampus") == 4
        monkeypatch.setattr(costs, "measure", None)
        assert costs.iterations_for("quarter", "mit", "hippocampus") == 4

    def test_cost_of_another_row(self, fresh, monkeypatch):
        """A row that costs what another does is not measured."""
        monkeypatch.setattr(costs, "measure", lambda row, dataset: {"seconds": 0.25, "measured": row})
        assert costs.calibrate("unet2022_ema", "hippocampus")["measured"] == "unet2022"


class TestReproduce:
    def test_one_command(self, fresh, monkeypatch, capsys):
        """It prepares what is missing, runs and reports; a failed run is said, and the same command goes on."""
        monkeypatch.setattr(command.os, "nice", lambda by: by, raising=False)
        monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
        # in this process, where the tables are replaced
        worked = []
        monkeypatch.setattr(command, "run_in_processes", lambda words, count: worked.append(count) or main(words))
        monkeypatch.setitem(tables.BUDGETS, "100_epochs", tables.Budget(iterations=3))
        monkeypatch.setitem(DATA, "hippocampus_planned", replace(BALLS, largest_batch=None))
        plan = fresh / "preprocessed" / BALLS.dataset / "nnUNetPlans.json"
        plan.unlink()
        queue = write_queue(fresh / "queue.jsonl", Run("hippocampus_planned", "stock", "100_epochs", 0, 0))
        words = ["reproduce", "--device", "cpu", "--queue", str(queue), "--loaders", "0", "--workers", "2"]
        main(words)
        assert plan.is_file()
        assert worked == [2]
        (record,) = read_lines(results_file())
        assert record["batch_size"] == read_json(plan)["configurations"]["3d_fullres"]["batch_size"]
        assert (record["iterations"], record["calibrated_seconds"]) == (3, None)
        page = (work_folder() / "accuracy.md").read_text()
        assert "### Balls, `3d_fullres`, planned batch, 3 iterations" in page
        assert "minutes" not in page.partition("###")[2]
        assert page.startswith("# Dice at equal iterations") and "budget" not in page
        assert (work_folder() / "accuracy.png").stat().st_size > 1000
        write_queue(queue, *(Run("hippocampus_planned", "stock", "100_epochs", 0, seed) for seed in (0, 1)))
        monkeypatch.setattr(command, "run_in_processes", lambda words, count: None)
        with pytest.raises(SystemExit, match=r"1 of 2 runs are not finished; their errors.* the same command goes on"):
            main(words)

    def test_workers(self, fresh, capfd):
        """Processes that share a queue say why they end."""
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        append_line(results_file(), vars(STOCK))
        words = ["run", "--queue", str(queue)]
        run_in_processes(words, 2)
        assert "Error" not in capfd.readouterr().err
        queue.write_text('{"dataset": "hippocampus", "row": "resnet", "budget": "whole", "fold": 0, "seed": 0}')
        run_in_processes(words, 1)
        assert "no row 'resnet'" in capfd.readouterr().err

    def test_without_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit, match="no GPU is found; add --device cpu"):
            main(["reproduce"])

    def test_mistakes(self, fresh):
        """They are said before anything is prepared."""
        queue = write_queue(fresh / "queue.jsonl")
        words = ["reproduce", "--device", "cpu", "--queue"]
        for path in (queue, fresh / "mistyped.jsonl"):
            with pytest.raises(SystemExit, match=rf"{path.name} has no runs, or does not exist"):
                main([*words, str(path)])
        with pytest.raises(SystemExit, match="add --device cuda"):
            main([*words, str(write_queue(queue, STOCK)), "--graphs"])

    def test_costs(self, fresh, monkeypatch):
        """Of a budget in processor time the reference is prepared, and costs are measured before the workers start."""
        prepared, measured = [], []
        monkeypatch.setattr(reproduce, "prepare", lambda data, rows, processes: prepared.append((data, *rows)))
        monkeypatch.setattr(reproduce, "seconds_per_iteration", lambda *pair: measured.append(pair))
        runs = [Run("em", "mit", budget, 0, 0) for budget in ("tenth", "quarter", "100_epochs")]
        reproduce.prepare_runs(runs, 1, torch.device("cpu"), 0)
        assert prepared == [(DATA["em"], ROWS["mit"]), (DATA["hippocampus"], ROWS["stock"])]
        assert measured == [("stock", "hippocampus"), ("mit", "em")]
        del prepared[:], measured[:]
        reproduce.prepare_runs(runs[2:], 1, torch.device("cpu"), 0)
        assert prepared == [(DATA["em"], ROWS["mit"])] and not measured

    @pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals of POSIX")
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_go_on_to_the_workers(self, monkeypatch, tmp_path, number):
        """Each gets one, and the handlers of before are back."""
        monkeypatch.setattr(reproduce, "_work", wait_for_a_signal)
        before = signal.getsignal(number)

        def send():
            while len(list(tmp_path.iterdir())) < 2:
                time.sleep(0.05)
            os.kill(os.getpid(), number)

        Thread(target=send, daemon=True).start()
        run_in_processes([str(tmp_path)], 2)
        assert [file.read_text() for file in tmp_path.iterdir()] == ["ended"] * 2
        assert signal.getsignal(number) is before


class TestPrepare:
    COMMANDS = (
        (["prepare"], ("nnUNet_raw", "nnUNet_preprocessed")),
        (["calibrate"], ("nnUNet_preprocessed", "nnUNet_results")),
        (["pretrain", "mit_mae"], FOLDERS),
        (["run", "--queue", str(FOLDER / "judge.jsonl")], ("nnUNet_preprocessed", "nnUNet_results")),
        (["reproduce", "--device", "cpu"], FOLDERS),
    )

    @pytest.mark.parametrize(("words", "needed"), COMMANDS, ids=lambda words: words[0])
    def test_missing_folders(self, tmp_path, monkeypatch, words, needed):
        for missing in needed:
            set_nnunet_folders(tmp_path, monkeypatch)
            monkeypatch.delenv(missing)
            with pytest.raises(SystemExit, match=f"^{missing} is not set; export nnUNet_raw, "):
                main(words)

    @pytest.mark.parametrize(
        "words",
        [
            ["prepare", "--datasets", "hippocampus", "em"],
            ["pretrain", "mit_mae", "mit_mae_acdc"],
            ["reproduce", "--device", "cpu"],
        ],
        ids=lambda words: words[0],
    )
    def test_missing_dataset(self, nnunet_folders, words):
        """It is said where it has to be, before anything is made of those that are there."""
        write_dataset(nnunet_folders / "raw", "Dataset004_Hippocampus", cases=1)
        with pytest.raises(SystemExit, match=r"^Dataset\w+ is not in nnUNet_raw: \S*raw\S*Dataset\w+ has to hold it"):
            main(words)
        assert not any((nnunet_folders / "preprocessed").iterdir())

    def test_dataset_that_is_nowhere(self, nnunet_folders):
        with pytest.raises(RefusedError, match="Dataset900_Balls is not in nnUNet_raw"):
            prepare(BALLS, [ROWS["stock"]])

    def test_calibration_without_a_plan(self, nnunet_folders):
        with pytest.raises(SystemExit, match=r"nnUNetPlans.json is missing; `python -m benchmarks.accuracy prepare`"):
            main(["calibrate", "--datasets", "em", "--rows", "stock"])

    def test_only_pretrained_rows(self, fresh, monkeypatch):
        """The plan of their network is made, once."""
        planned, planned_of = [], prepare_module._planned
        monkeypatch.setattr(prepare_module, "_plan", lambda data, row, processes: planned.append(row))
        monkeypatch.setattr(prepare_module, "_planned", lambda data, row: planned_of(data, ROWS["stock"]))
        main(["prepare", "--datasets", "hippocampus", "--rows", "mit_mae", "mit_volume_fusion", "mit"])
        assert planned == [ROWS["mit"]]

    def test_only_unsuitable_rows(self, fresh, capsys):
        prepare(replace(BALLS, configuration="2d"), [ROWS["primus_v3_s"]])
        assert "Dataset900_Balls, 2d: no row suits it; it is left out" in capsys.readouterr().out

    def test_changed_token_rules(self, fresh):
        """A row that changes the planner's rules has a plan of its own; the next is planned by the planner's."""
        balls = replace(BALLS, configuration="2d")
        coarse = replace(ROWS["mit"], plans="nnUNetMiT7Plans_coarse", token_rules={"finest_tokens_2d": 0})
        prepare(balls, [coarse, ROWS["mit"]])
        planned = (PlannedConfiguration.load(BALLS.dataset, row.plans, "2d") for row in (coarse, ROWS["mit"]))
        strides = [
            plan.configuration.configuration["architecture"]["arch_kwargs"]["patch_embed_stride"] for plan in planned
        ]
        assert strides == [[4, 4], [2, 2]]


class TestPretrain:
    def test_killed_one_goes_on(self, fresh, monkeypatch):
        """From its state, at the step of it; the time of both parts counts, and what is complete is not repeated."""
        settings = {"data.init_args.batch_size": 1, "data.init_args.samples_per_epoch": 2}
        settings |= {"model.init_args.mask_size": 4, "model.init_args.warmup_epochs": 1, "trainer.max_epochs": 2}
        given = replace(tables.PRETRAININGS["mit_mae"], settings=settings)
        monkeypatch.setitem(tables.PRETRAININGS, "mit_mae", given)
        prepare(BALLS, [ROWS["mit"]])
        train, steps, commands, to_fail = MAE.training_step, [], [], {"fit", "attach"}

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


class TestBudget:
    def test_iterations_are_inverse_to_the_cost(self, monkeypatch):
        known = {("stock", "hippocampus"): {"seconds": 3.0}, ("mit", "em"): {"seconds": 1.5}}
        monkeypatch.setattr(costs, "read_costs", lambda: known)
        assert costs.iterations_for("quarter", "stock", "hippocampus") == 500
        assert costs.iterations_for("whole", "mit", "em") == 4000
        assert costs.iterations_for("2000_iterations", "mit", "em") == 2000

    @pytest.mark.parametrize("iterations", (1, 19, 40, 79, 150, 503, 12345))
    def test_epochs(self, iterations):
        epochs, per_epoch = trainer.split_iterations(iterations)
        assert epochs >= min(iterations, 20)
        assert epochs * per_epoch == pytest.approx(iterations, rel=0.02)

    def test_until(self):
        assert 0 < next_time("00:00") - time.time() <= 86400


class TestPlans:
    def plans(self):
        architecture = {"arch_kwargs": {"norm": "post", "depths": [2]}}
        configuration = {"batch_size": 12, "patch_size": [10, 17], "architecture": architecture}
        return {"configurations": {"2d": configuration}}

    def test_changes(self):
        row = Row("", "", "", "", {"norm": "pre"}, {"batch_dice": True}, patch_multiple=8)
        plans = self.plans()
        changed = trainer.changed_plans(plans, row, Data("Dataset001_A", "2d", largest_batch=8))["configurations"]["2d"]
        assert (changed["batch_size"], changed["patch_size"], changed["batch_dice"]) == (8, [16, 24], True)
        assert changed["architecture"]["arch_kwargs"] == {"norm": "pre", "depths": [2]}
        assert plans == self.plans()


class TestSplit:
    CASES = tuple(f"patient{number:03d}_frame{frame:02d}" for number in range(20) for frame in (1, 12))

    def test_patients_stay_together(self):
        split = grouped_split(self.CASES, r"patient\d+")
        for fold in split:
            patients = [{case.split("_")[0] for case in fold[part]} for part in ("train", "val")]
            assert not patients[0] & patients[1]
            assert sorted(fold["train"] + fold["val"]) == sorted(self.CASES)
        assert sorted(case for fold in split for case in fold["val"]) == sorted(self.CASES)

    def test_without_groups_it_is_nnunets(self):
        expected = generate_crossval_split(sorted(self.CASES), seed=12345, n_splits=5)
        assert grouped_split(self.CASES, ".*") == [{k: list(map(str, v)) for k, v in f.items()} for f in expected]

    def test_another_split_is_not_replaced(self, tmp_path):
        write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, r"patient\d+"))
        write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, r"patient\d+"))
        with pytest.raises(ValueError, match="another split"):
            write_split(tmp_path / "splits_final.json", grouped_split(self.CASES, ".*"))


class TestResults:
    def test_lines_of_several_writers_are_whole(self, tmp_path):
        records = [{"writer": writer, "text": "x" * 50_000} for writer in range(8)]
        threads = [Thread(target=append_line, args=(tmp_path / "results.jsonl", record)) for record in records]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(read_lines(tmp_path / "results.jsonl"), key=lambda r: r["writer"]) == records

    def test_full_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "results.jsonl"
        append_line(path, {"a": 1})
        write = execute.os.write
        with monkeypatch.context() as context:
            context.setattr(execute.os, "write", lambda descriptor, line: write(descriptor, line[:3]))
            with pytest.raises(OSError, match="no space"):
                append_line(path, {"b": 2})
        append_line(path, {"c": 3})
        assert read_lines(path) == [{"a": 1}, {"c": 3}]

    def test_full_disk_beside_another_writer(self, tmp_path, monkeypatch):
        """What the other one appends stays whole."""
        path, write = tmp_path / "results.jsonl", execute.os.write
        append_line(path, {"a": 1})
        other = Thread(target=append_line, args=(path, {"c": 3}))

        def write_a_part(descriptor, line):
            monkeypatch.setattr(execute.os, "write", write)
            written = write(descriptor, line[:3])
            other.start()
            other.join(0.3)
            return written

        monkeypatch.setattr(execute.os, "write", write_a_part)
        with pytest.raises(OSError, match="no space"):
            append_line(path, {"b": 2})
        other.join()
        assert read_lines(path) == [{"a": 1}, {"c": 3}]

    def test_line_that_is_being_appended(self, tmp_path, monkeypatch):
        """Readers wait until it is whole."""
        path, write, read = tmp_path / "results.jsonl", execute.os.write, []
        reader = Thread(target=lambda: read.extend(read_lines(path)))

        def write_in_parts(descriptor, line):
            written = write(descriptor, line[:3])
            reader.start()
            reader.join(0.3)
            return written + write(descriptor, line[3:])

        monkeypatch.setattr(execute.os, "write", write_in_parts)
        append_line(path, {"a": 1})
        reader.join()
        assert read == [{"a": 1}]

    def test_line_after_one_without_an_end(self, tmp_path):
        path = tmp_path / "results.jsonl"
        path.write_text('{"a": 1}')
        append_line(path, {"b": 2})
        assert read_lines(path) == [{"a": 1}, {"b": 2}]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"dataset": "em"', r"column 17: Expecting ',' delimiter"),
            ('{"dataset": "em\xff"}', "can't decode byte"),
            ("[1]", "no JSON object"),
            ('{"seed": 0}', "lacks dataset and row and budget and fold; a run has"),
            (json.dumps({**vars(STOCK), "row": ["mit"]}), r"no row \['mit'\]"),
        ],
    )
    def test_bad_line(self, tmp_path, monkeypatch, line, reason):
        """Errors say where it is, of the queue and of the results alike."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        path = results_file()
        append_line(path, vars(STOCK))
        path.write_bytes(path.read_bytes() + b"\n" + line.encode("latin-1"))
        for read in (read_queue, lambda path: execute.finished_runs()):
            with pytest.raises(RefusedError, match=rf"results.jsonl, line 3[:,] .*{reason}"):
                read(path)
        with pytest.raises(SystemExit, match=r"results.jsonl, line 3"):
            main(["report", "--output", str(tmp_path / "page")])

    def test_mistyped_key(self, tmp_path):
        for key in ("seed", "threads"):
            record = {**vars(STOCK), "seeds" if key == "seed" else key: 1}
            path = tmp_path / "queue.jsonl"
            path.write_text(json.dumps({name: record[name] for name in record if name != "seed" or key != "seed"}))
            with pytest.raises(RefusedError, match=rf"queue.jsonl, line 1: a run has no {key}s?$"):
                read_queue(path)

    def test_cost_without_a_name(self, tmp_path, monkeypatch):
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        append_line(costs.costs_file(), {"dataset": "em", "seconds": 1.0})
        with pytest.raises(RefusedError, match=r"costs.jsonl, line 1: lacks row"):
            costs.read_costs()

    def test_files_that_do_not_exist(self, tmp_path, monkeypatch):
        """Or hold no runs; nothing is written."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
        monkeypatch.setattr(command.os, "nice", lambda by: by, raising=False)
        monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
        empty, missing = tmp_path / "empty.jsonl", tmp_path / "none.jsonl"
        empty.touch()
        for path in (empty, missing):
            with pytest.raises(SystemExit, match=rf"{path.name} has no runs, or does not exist"):
                main(["run", "--queue", str(path)])
        output = ["--output", str(tmp_path / "page")]
        with pytest.raises(SystemExit, match=r"none.jsonl: no such file"):
            main(["report", str(empty), str(missing), *output])
        for words, name in (([str(empty)], "empty.jsonl"), ([], "results.jsonl")):
            with pytest.raises(SystemExit, match=rf"no finished runs in \S*{name}"):
                main(["report", *words, *output])
        assert not list(tmp_path.glob("page*"))

    def test_help_and_report_without_folders(self, tmp_path, monkeypatch, capsys):
        for name in FOLDERS:
            monkeypatch.delenv(name, raising=False)
        for words in (["--help"], ["report", "--help"]):
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0
        append_line(tmp_path / "results.jsonl", self.record("hippocampus", "stock", "tenth", 0.5))
        main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        assert (tmp_path / "page.md").is_file()
        with pytest.raises(SystemExit, match="nnUNet_results is not set; export nnUNet_raw, "):
            main(["report", "--output", str(tmp_path / "page")])

    def test_difference_is_paired_by_patient(self):
        rng = np.random.default_rng(1)
        patients = {f"patient{n:03d}": value for n, value in enumerate(rng.uniform(0.2, 0.9, 16))}
        # both frames of a patient and both seeds count as one value; a missing label does not count
        reference = [
            {
                "dataset": "acdc_2d",
                "dice_per_case": {f"{p}_frame{f:02d}": [v, v] for p, v in patients.items() for f in (1, 9)},
            }
        ]
        gains = dict(zip(patients, rng.normal(0.05, 0.02, 16), strict=True))
        ours = [
            {
                "dataset": "acdc_2d",
                "dice_per_case": {
                    f"{p}_frame{f:02d}": [v + gains[p] + by, None] for p, v in patients.items() for f in (1, 9)
                },
            }
            for by in (-0.01, 0.01)
        ]
        middle, low, high = difference(ours, reference)
        assert middle == pytest.approx(np.mean(list(gains.values())))
        error = np.std(list(gains.values())) / 4
        assert [low, high] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.3 * error)
        assert difference(ours, []) is None

    def test_seeds_that_draw_the_cases_are_paired(self):
        """The mean of seed 0 alone, which both have, where seeds differ by their cases."""

        def runs(dataset, *values):
            return [
                {"dataset": dataset, "seed": seed, "dice_per_case": {f"case{n}": [value] for n in range(5)}}
                for seed, value in enumerate(values)
            ]

        for dataset, expected in (("hippocampus_ten", 0.02), ("hippocampus", -0.08)):
            assert difference(runs(dataset, 0.82), runs(dataset, 0.8, 1.0))[0] == pytest.approx(expected)

    @staticmethod
    def record(dataset, row, budget, dice, fold=0):
        run = vars(Run(dataset, row, budget, fold, 0))
        of = {"iterations": 4, "epochs": 2, "calibrated_seconds": 1.0, "batch_size": 2, "patch_size": [8, 8, 8]}
        found = {"dice": dice, "dice_per_label": {"large": dice}, "dice_per_case": {"a": [dice], "b": [dice]}}
        return {
            **run,
            **of,
            **found,
            "parameters": 10**6,
            "curve": {"pseudo_dice": [0, dice]},
            "processor": "x",
            "processor_seconds": 3.0,
        }

    def test_folds_for_tuning(self):
        """Rows of the folds for tuning say which: their means are not of the same cases."""
        of = [("stock", 0.5, 1), ("stock", 0.7, 2), ("mit", 0.8, 1)]
        lines = table([self.record("hippocampus", row, "tenth", dice, fold) for row, dice, fold in of]).splitlines()
        assert [line.split(" | ")[1:4] for line in lines[2:]] == [["1, 2", "1", "0.600"], ["1", "1", "0.800"]]

    def test_costs_elsewhere(self):
        """Processor time as shares of the measured costs: of CPU runs, and of costs measured beside earlier ones."""
        known = [
            {"row": "stock", "dataset": "hippocampus", "seconds": 8.0},
            {
                "row": "mit",
                "dataset": "hippocampus",
                "seconds": 2.0,
                "beside": ["stock", "hippocampus"],
                "beside_seconds": 4.0,
            },
            {"row": "mit", "dataset": "em", "seconds": 2.0, "beside": ["stock", "em"], "beside_seconds": 1.0},
        ]
        run = self.record("hippocampus", "qt_unet", "quarter", 0.5)
        on_gpu = {**run, "row": "unet2022", "gpu": "NVIDIA"}
        text = elsewhere([run, on_gpu], known)
        assert text.endswith(": PlainConvUNet 0.50, QT-UNet T 0.75.")
        assert elsewhere([on_gpu], []) == ""

    def test_panels(self):
        """A network alone has no panel where others are compared; each network has the same look in all panels."""
        of = [("em", "stock"), ("acdc_2d", "stock"), ("acdc_2d", "mit"), ("acdc_3d", "mit"), ("acdc_3d", "qt_unet")]
        records = [self.record(dataset, row, "quarter", 0.5) for dataset, row in of]
        panels = [axes for axes in draw(records).axes if axes.axison]
        assert [axes.get_title().partition("\n")[0] for axes in panels] == ["ACDC, 2d", "ACDC, 3d_fullres"]
        looks = {(line.get_label().partition(",")[0], line.get_color()) for axes in panels for line in axes.lines[1::2]}
        assert {name for name, _ in looks} == {"PlainConvUNet", "MiT-7", "QT-UNet T"}
        assert len(looks) == len({colour for _, colour in looks}) == 3
        (alone,) = draw(records[:1]).axes
        assert alone.get_title().startswith("ISBI2012EM")

    def test_equal_total_cost(self, tmp_path, monkeypatch):
        """A pretrained network is compared with a training from scratch that is longer by the pretraining."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        given = [("mit", "tenth", 0.7), ("mit_mae", "tenth", 0.76), ("mit", "three_tenths", 0.75)]
        for row, budget, dice in given:
            append_line(tmp_path / "results.jsonl", self.record("hippocampus_ten", row, budget, dice))
        settings = {"data.init_args.samples_per_epoch": 20, "trainer.max_epochs": 3}
        made = {"pretraining": "mit_mae", "settings": settings, "units": 0.21}
        append_line(tmp_path / "pretraining.jsonl", {**made, "curve": {"loss": [[0, 1.5], [9, 0.25]]}})
        main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        lines = (tmp_path / "page.md").read_text().splitlines()
        (row,) = (line.split(" | ") for line in lines if line.startswith("| MiT-7 after MAE"))
        assert row[4:6] == ["+0.060 (+0.060 to +0.060)", "+0.010 (+0.010 to +0.010)"]
        assert "| MiT-7 | MAE | 60 | 0.21 | 1.50 to 0.25 |" in lines
        assert read_lines(tmp_path / "page_pretraining.jsonl")[0]["units"] == 0.21

    def test_costs_are_kept(self, tmp_path, monkeypatch):
        """Beside the page, the first of a row and dataset, so that others can train for as long."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        append_line(tmp_path / "results.jsonl", self.record("hippocampus", "mit", "quarter", 0.7) | {"gpu": "x"})
        for seconds in (3.0, 4.0):
            append_line(tmp_path / "costs.jsonl", {"row": "mit", "dataset": "hippocampus", "seconds": seconds})
        for _ in range(2):
            main(["report", str(tmp_path / "results.jsonl"), "--output", str(tmp_path / "page")])
        assert [line["seconds"] for line in read_lines(tmp_path / "page_costs.jsonl")] == [3.0]
        assert "[measured once](page_costs.jsonl)" in (tmp_path / "page.md").read_text()


class TestTables:
    def test_queues_keep_folds_apart(self):
        queues = {"judge": {JUDGED_FOLD}, "hundred_epochs": {JUDGED_FOLD}, "tune": set(TUNED_FOLDS)}
        for name, folds in queues.items():
            runs = read_queue(FOLDER / f"{name}.jsonl")
            assert {run.fold for run in runs} <= folds
            assert len(set(runs)) == len(runs)
        assert JUDGED_FOLD not in TUNED_FOLDS

    def test_run_that_does_not_exist(self):
        with pytest.raises(ValueError, match="no row 'resnet'"):
            Run("em", "resnet", "quarter", 0, 0)
        with pytest.raises(RefusedError, match="primus_v3_s has no network for 2d"):
            Run("em", "primus_v3_s", "quarter", 0, 0)
        for dataset in ("hippocampus", "acdc_2d"):
            with pytest.raises(ValueError, match=f"mit_mae_acdc is not for {dataset}"):
                Run(dataset, "mit_mae_acdc", "quarter", 0, 0)

    @pytest.mark.parametrize("fold", [-1, 5, "0", 0.0, True, None])
    def test_fold_that_does_not_exist(self, fold):
        with pytest.raises(RefusedError, match=r"fold .* is no whole number from 0 to 4"):
            Run("em", "stock", "quarter", fold, 0)

    @pytest.mark.parametrize("seed", [-1, "0", 1.5, False, None])
    def test_seed_that_does_not_exist(self, seed):
        with pytest.raises(RefusedError, match=r"seed .* is no whole number from 0 on"):
            Run("em", "stock", "quarter", 4, seed)

    def test_encoder_is_not_for_folds_that_it_has_seen(self):
        Run("hippocampus_ten", "mit_mae", "tenth", JUDGED_FOLD, 0)
        for fold in TUNED_FOLDS:
            with pytest.raises(RefusedError, match=f"has seen the validation images of fold {fold}; it is for fold 0"):
                Run("hippocampus_ten", "mit_mae", "tenth", fold, 0)

    def test_rows_of_encoders(self):
        """A row that starts from an encoder needs the plan of its network."""
        runs = [Run("hippocampus_ten", "qt_unet_mae", "tenth", 0, 0), Run("em", "stock", "tenth", 0, 0)]
        assert rows_of(runs, DATA["hippocampus_ten"].dataset) == ["qt_unet_mae", "qt_unet"]
