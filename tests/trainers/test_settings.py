"""A plan's training settings reach what they set, and training ends early where it should."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.plans.training import TrainingSettings
from nnunet_transformers.trainers.focal import FocalLoss
from nnunet_transformers.trainers.settings import FollowsSettings, _EndedEarlyError

from .conftest import CPU, PLANS, TRAINER, model_folder, train

FULL = "nnUNetTrainerQTUNet"
SETTINGS = {
    "epochs": 7,
    "iterations_per_epoch": 12,
    "learning_rate": 2e-3,
    "weight_decay": 0.25,
    "optimiser": "adam",
    "schedule": "cosine",
    "warmup_fraction": 0.0,
    "clip_grad_norm": 3.0,
    "dice_weight": 0.7,
    "ce_weight": 0.2,
    "focal_weight": 0.4,
    "layer_decay": 0.5,
    "frozen_fraction": 0.1,
    "deep_supervision": False,
    "oversample_foreground": 0.8,
    "oversampling": "probability",
    "augmentation": "none",
    "mirror_axes": [0],
    "mirroring": False,
    "augment_on_device": True,
    "ema_decay": 0.9,
    "surface_metrics": True,
    "patience": 5,
}


@pytest.fixture
def planned(prepared):
    """Write a plan with settings; returns its name."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"

    def plan(**settings):
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        plans["plans_name"] = f"{PLANS}_settings"
        for configuration in ("2d", "3d_fullres"):
            plans["configurations"][configuration]["training"] = settings
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
        return plans["plans_name"]

    return plan


def make(plans, trainer=FULL):
    return get_trainer_from_args("900", "3d_fullres", 0, trainer, plans, device=CPU)


def rates(trainer):
    """The rate at quarters of the schedule, as shares of the highest."""
    _, scheduler = trainer.configure_optimizers()
    found = []
    for quarter in range(4):
        scheduler.step(quarter * trainer.num_epochs / 4)
        found.append(scheduler.optimizer.param_groups[0]["lr"] / trainer.initial_lr)
    return found


class TestSettings:
    def test_linear_probes_keep_their_recipe(self, planned):
        """Of a plan that a preset has written, too; its settings of the data are followed."""
        settings = {**SETTINGS, "frozen_fraction": 1.0}
        for name, epochs in (("nnUNetTrainerLinearProbe", 20), ("nnUNetTrainerLinearProbe_5epochs", 5)):
            probe = make(planned(**settings), name)
            assert (probe.num_epochs, probe.initial_lr) == (epochs, 1e-2)
            assert probe.num_iterations_per_epoch == probe.default_iterations != 12
            assert (probe.frozen_fraction, probe.weight_decay, probe.patience) == (0, 0, None)
            assert not probe.enable_deep_supervision
            assert (probe.oversample_foreground_percent, probe.mirroring) == (0.8, False)

    def test_all_of_them(self, planned):
        trainer = make(planned(**SETTINGS))
        trainer.initialize()
        assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
            7,
            12,
            2,
        )
        assert type(trainer.optimizer) is torch.optim.Adam
        assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.25}
        assert trainer.initial_lr == 2e-3
        assert rates(trainer) == pytest.approx([1, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4])
        # without deep supervision's wrapper; the focal loss has the place of cross-entropy
        assert (trainer.loss.weight_dice, trainer.loss.weight_ce) == (0.7, 0.4)
        assert type(trainer.loss.ce) is FocalLoss
        assert (trainer.clip_grad_norm, trainer.layer_decay, trainer.frozen_fraction) == (3.0, 0.5, 0.1)
        assert (trainer.oversample_foreground_percent, trainer.probabilistic_oversampling) == (0.8, True)
        patch_size = trainer.configuration_manager.patch_size
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2:] == (patch_size, None)
        assert trainer.inference_allowed_mirroring_axes is None
        assert trainer.patience == 5 and trainer.surface_metrics and trainer.augment_on_device

    @pytest.mark.parametrize(
        ("name", "length"), [(f"{FULL}_5epochs", (5, 12)), (f"{FULL}Demo", (12, 20)), (FULL, (7, 12))]
    )
    def test_length_that_the_name_states(self, planned, name, length):
        trainer = get_trainer_from_args("900", "3d_fullres", 0, name, planned(epochs=7, iterations_per_epoch=12), CPU)
        assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == length
        assert trainer.augmentation == ("none" if name.endswith("Demo") else "nnunet")

    def test_none_of_them(self, planned):
        trainer = make(planned())
        trainer.initialize()
        assert (trainer.num_epochs, trainer.initial_lr, trainer.weight_decay) == (1000, 1e-3, 0.05)
        assert type(trainer.optimizer) is torch.optim.AdamW
        assert type(trainer.loss.loss.ce) is not FocalLoss
        assert trainer.enable_deep_supervision
        assert (trainer.oversample_foreground_percent, trainer.probabilistic_oversampling) == (0.33, False)
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
        assert trainer.augmentation == "nnunet"
        assert trainer.patience is None and not trainer.surface_metrics and not trainer.augment_on_device

    @pytest.mark.parametrize(("schedule", "middle"), [("polynomial", 0.5**0.9), ("constant", 1.0)])
    def test_schedules_precede_the_trainers(self, planned, schedule, middle):
        trainer = make(planned(schedule=schedule, warmup_fraction=0.0, epochs=4))
        trainer.initialize()
        assert rates(trainer)[2] == pytest.approx(middle)

    def test_the_length_in_a_trainers_name_stays(self, planned):
        plans = planned(epochs=7, learning_rate=2e-3)
        assert make(plans).num_epochs == 7
        trainer = make(plans, f"{FULL}_5epochs")
        assert (trainer.num_epochs, trainer.initial_lr) == (5, 2e-3)

    def test_every_setting_is_tried(self):
        assert TrainingSettings(**SETTINGS).stated() == SETTINGS
        assert all(value is not None for value in vars(TrainingSettings(**SETTINGS)).values())

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rate": 1}, "there is no setting rate; there are epochs, .*, patience"),
            ({"epochs": 0}, "epochs must be a whole number from 1 on, got 0"),
            ({"epochs": True}, "epochs must be a whole number from 1 on, got True"),
            ({"epochs": 1.5}, "epochs must be a whole number from 1 on, got 1.5"),
            ({"iterations_per_epoch": "all"}, "iterations_per_epoch must be a whole number from 1 on or 'cases'"),
            ({"learning_rate": "high"}, "learning_rate must be a number from 0 on, got 'high'"),
            ({"learning_rate": float("nan")}, "learning_rate must be a number from 0 on, got nan"),
            ({"oversample_foreground": 1.1}, "oversample_foreground must be a number from 0 to 1, got 1.1"),
            ({"optimiser": "sgd"}, "optimiser must be 'adamw' or 'adam', got 'sgd'"),
            ({"mirroring": 1}, "mirroring must be true or false, got 1"),
            ({"mirror_axes": [0, 3]}, r"mirror_axes must be 'unordered' or a list of axes from 0 to 2, each once, got"),
            ({"mirror_axes": [0, 0]}, "mirror_axes must be 'unordered' or a list of axes"),
            ({"mirror_axes": [True]}, "mirror_axes must be 'unordered' or a list of axes"),
            ({"mirror_axes": "all"}, "mirror_axes must be 'unordered' or a list of axes"),
        ],
    )
    def test_impossible_ones(self, planned, settings, message):
        with pytest.raises(RuntimeError, match=f"{PLANS}_settings, 3d_fullres, training: {message}.*Correct the plan"):
            make(planned(**settings))

    def test_frozen_throughout_requires_weights(self, planned):
        with pytest.raises(RuntimeError, match="specifies no initial weights"):
            make(planned(frozen_fraction=1.0))


class TestRuns:
    def test_an_epoch_of_the_cases(self, planned, prepared):
        plans = planned(iterations_per_epoch="cases", mirroring=False)
        train(trainer=TRAINER, plans=plans)
        folder = model_folder(prepared, trainer=TRAINER, plans=plans) / "fold_0"
        (log,) = folder.glob("training_log*")
        batch = json.loads((folder.parent / "plans.json").read_text())["configurations"]["3d_fullres"]["batch_size"]
        assert f"an epoch has {-(-4 // batch)} iterations, for 4 cases" in log.read_text()
        checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
        assert checkpoint["inference_allowed_mirroring_axes"] is None

    def test_stop_file(self, planned, prepared, monkeypatch):
        """Training ends after the epoch, with a final checkpoint, and goes on from there when asked; in 2D.

        A file that an earlier training left does not end it.
        """
        plans = planned(epochs=3)
        fold = model_folder(prepared, "2d", FULL, plans) / "fold_0"
        fold.mkdir(parents=True, exist_ok=True)
        (fold / "stop").touch()
        start_epoch = FollowsSettings.on_train_epoch_start

        def stop_in_the_second(trainer):
            assert (fold / "stop").exists() is False
            start_epoch(trainer)
            if trainer.current_epoch == 1:
                (fold / "stop").touch()

        with monkeypatch.context() as patched:
            patched.setattr(FollowsSettings, "on_train_epoch_start", stop_in_the_second)
            train("2d", FULL, plans)
        assert not (fold / "stop").exists()
        assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
        log = max(fold.glob("training_log*"), key=lambda path: path.stat().st_mtime).read_text()
        assert "was there before the training" in log
        assert "training ends early, after epoch 1: there was a file" in log
        assert (fold / "validation" / "summary.json").is_file()
        # interrupted, it goes on from what it has reached since, not from where it had ended
        started = []

        def interrupted_in_the_fifth(trainer):
            trainer.save_every = 1
            started.append(trainer.current_epoch)
            if started == [2, 3, 4]:
                raise InterruptedError
            start_epoch(trainer)

        monkeypatch.setattr(FollowsSettings, "on_train_epoch_start", interrupted_in_the_fifth)
        planned(epochs=6)
        with pytest.raises(InterruptedError):
            train("2d", FULL, plans, continue_training=True)
        assert not (fold / "checkpoint_final.pth").exists()
        train("2d", FULL, plans, continue_training=True)
        assert started == [2, 3, 4, 4, 5]
        assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 6
        # finished, it stays so
        train("2d", FULL, plans, continue_training=True)
        assert (fold / "checkpoint_final.pth").is_file() and not (fold / "checkpoint_latest.pth").exists()

    @pytest.mark.parametrize(
        ("losses", "ends"),
        [
            ([3, 2, 2.5, 2.5], True),
            ([np.nan, 2, 2.5, 2.5], True),
            ([3, 2, 2.5, 1], False),
            ([3, 2, 2.5], False),
            ([np.nan, 4, 3, 2], False),
        ],
    )
    def test_patience(self, planned, monkeypatch, losses, ends):
        trainer = make(planned(patience=2))
        monkeypatch.setattr(
            "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer.on_epoch_end", lambda self: None
        )
        trainer.logger.local_logger.my_fantastic_logging["val_losses"] = losses
        if not ends:
            trainer.on_epoch_end()
            return
        with pytest.raises(_EndedEarlyError, match="the validation loss was lowest in epoch 1, 2 epochs ago"):
            trainer.on_epoch_end()
        # not after the last epoch, which ends it anyway
        trainer.current_epoch = trainer.num_epochs
        trainer.on_epoch_end()
