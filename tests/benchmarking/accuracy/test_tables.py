"""Datasets, rows, budgets and runs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks.accuracy import costs, trainer
from benchmarks.accuracy.command import next_time
from benchmarks.accuracy.reproduce import rows_of
from benchmarks.accuracy.runs import Run, read_queue
from benchmarks.accuracy.tables import DATA, JUDGED_FOLD, ROWS, TUNED_FOLDS, Change, Data, Row
from nnunet_transformers._reading import RefusedError
from nnunet_transformers.plans.builder import find_trainer
from nnunet_transformers.trainers.trainer import TransformerTrainer

from .helpers import FOLDER


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

    def test_a_plans_settings_of_the_training_stay(self):
        row = Row("", "", "", "", configuration={"training": {"ema_decay": 0.9}})
        plans, data = self.plans(), Data("Dataset001_A", "2d")
        assert trainer.changed_plans(plans, row, data)["configurations"]["2d"]["training"] == {"ema_decay": 0.9}
        plans["configurations"]["2d"]["training"] = {"mirror_axes": [0], "ema_decay": 0.5}
        changed = trainer.changed_plans(plans, row, data)["configurations"]["2d"]
        assert changed["training"] == {"mirror_axes": [0], "ema_decay": 0.9}
        assert "training" not in trainer.changed_plans(self.plans(), Row("", "", "", ""), data)["configurations"]["2d"]


class TestTables:
    def test_queues_keep_folds_apart(self):
        queues = {"judge": {JUDGED_FOLD}, "hundred_epochs": {JUDGED_FOLD}, "tune": set(TUNED_FOLDS)}
        for name, folds in queues.items():
            runs = read_queue(FOLDER / f"{name}.jsonl")
            assert {run.fold for run in runs} <= folds
            assert len(set(runs)) == len(runs)
        assert JUDGED_FOLD not in TUNED_FOLDS

    def test_changed_row(self):
        """A mapping is added to the row's, and only what costs something is measured."""
        row = Row("A", "", "APlans", "", arguments={"depth": 2, "width": 3}, attributes={"rate": 1}, varies="b")
        free = Change("wider", ("a",), {"arguments": {"width": 4}}).apply("a", "wide", row)
        assert free == replace(row, title="A, wider", arguments={"depth": 2, "width": 4}, costs_as="a", varies=None)
        finer = Change("finer", ("a",), {"token_rules": {"finest": 1}}, is_free=False).apply("a", "fine", row)
        assert finer == replace(row, title="A, finer", plans="APlans_fine", token_rules={"finest": 1}, varies="a")

    @pytest.mark.parametrize("name", ROWS)
    def test_mirrored_axes_do_not_depend_on_the_plan(self, name):
        """Ours state their own, and networks are compared with the same augmentation."""
        follows_plan = issubclass(find_trainer(ROWS[name].trainer), TransformerTrainer)
        assert not follows_plan or "mirror_axes" in ROWS[name].attributes

    @pytest.mark.parametrize("name", ROWS)
    def test_attributes_exist(self, name):
        network_trainer = type("", (trainer.Measured, find_trainer(ROWS[name].trainer)), {})
        of_instances = {"initial_lr", "weight_decay"}
        assert all(key in of_instances or hasattr(network_trainer, key) for key in ROWS[name].attributes)

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
        assert rows_of(runs, DATA["hippocampus_ten"].dataset) == ["qt_unet_mae", "qt_unet_branch"]
