"""Runs of a queue, on a drawn dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.accuracy import command, costs, execute, trainer
from benchmarks.accuracy.command import main
from benchmarks.accuracy.runs import Run, append_line, read_lines, read_runs, results_file, work_folder
from benchmarks.accuracy.tables import DATA, ROWS
from nnunet_transformers._lease import FolderInUse, lease
from nnunet_transformers._reading import RefusedError

from .helpers import BALLS, STOCK, never, write_queue


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
        monkeypatch.setattr(nnUNetTrainer, "do_split", lambda self: (cases, ["patient9_ED"]))
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

    @pytest.mark.parametrize("changed", ["plan", "trainer", "attributes", "iterations", "labelled", "settings"])
    def test_state_of_another_row(self, fresh, monkeypatch, capsys, changed):
        """A training does not go on from it, nor is it validated as its own."""
        queue = write_queue(fresh / "queue.jsonl", STOCK)
        asked = chain(repeat(False, 1), repeat(True))
        assert execute.run_queue(queue, lambda: next(asked)) == []
        folder = work_folder() / STOCK.name
        before = (folder / "settings.json").read_text()
        rows = {
            "plan": {"configuration": {"batch_dice": True}},
            "trainer": {"trainer": "nnUNetTrainerNoDeepSupervision"},
            "attributes": {"attributes": {"initial_lr": 1.0}},
        }
        monkeypatch.setitem(ROWS, "stock", replace(ROWS["stock"], **rows.get(changed, {})))
        if changed == "iterations":
            monkeypatch.setattr(costs, "UNIT_ITERATIONS", 16)
        if changed == "labelled":
            monkeypatch.setitem(DATA, "hippocampus", replace(BALLS, labelled=2))
        if changed == "settings":
            (folder / "settings.json").unlink()
        assert execute.run_queue(queue, never) == [STOCK]
        what = "without settings.json" if changed == "settings" else f"with other {changed}"
        assert capsys.readouterr().err.splitlines() == [f"{STOCK.name}: {folder} holds a training {what}; remove it"]
        if changed != "settings":
            assert (folder / "settings.json").read_text() == before
        shutil.rmtree(folder)
        assert execute.run_queue(queue, never) == []

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

    @pytest.mark.parametrize("row", ["stock", "stock_no_augmentation", "stock_unmirrored"])
    def test_augmentation(self, fresh, monkeypatch, row):
        """Without it a patch is a piece of its image."""
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        made = trainer.make_trainer(ROWS[row], BALLS, 0, 0, 2)
        made.on_train_start()
        batch = next(made.dataloader_train)
        stored = {case: made.dataloader_train.data_loader._data.load_case(case)[0] for case in batch["keys"]}
        pieces = [
            np.isin(data, [*stored[case][:].flat, 0]).all()
            for data, case in zip(batch["data"], batch["keys"], strict=True)
        ]
        assert all(pieces) == (row == "stock_no_augmentation")
        transforms = made.dataloader_train.data_loader.transforms.transforms
        mirrors = any(isinstance(transform, MirrorTransform) for transform in transforms)
        assert (made.inference_allowed_mirroring_axes is not None) == mirrors == (row == "stock")

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
