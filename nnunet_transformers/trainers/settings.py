"""Trainers follow the training settings of a plan, and end early when asked or when nothing gets better."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ..plans.training import CASES, TrainingSettings

# nnU-Net's exponent
POLYNOMIAL = 0.9
# in the fold's folder: training ends after the epoch in which it appears
STOP_FILE = "stop"
# setting to attribute, where they differ
ATTRIBUTES = {
    "epochs": "num_epochs",
    "learning_rate": "initial_lr",
    "oversample_foreground": "oversample_foreground_percent",
}


class _EndedEarlyError(Exception):
    """Leaves nnU-Net's loop over the epochs, whose number it reads once."""


class FollowsSettings(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    Attributes:
        stated_by_name: settings that the trainer's name states; they precede the plan's.
        optimiser, schedule, lr_power, mirroring, patience: as ``TrainingSettings``; a "polynomial" schedule has the
            exponent ``lr_power``.
    """

    oversample_foreground_percent: float
    inference_allowed_mirroring_axes: tuple[int, ...] | None
    enable_deep_supervision: bool
    stated_by_name: frozenset[str] = frozenset()
    optimiser = "adamw"
    schedule = "polynomial"
    lr_power = POLYNOMIAL
    mirroring = True
    patience: int | None = None

    @staticmethod
    def followed(settings: TrainingSettings) -> TrainingSettings:
        """Return the settings of a plan that the trainer follows; all, unless a subclass has others of its own."""
        return settings

    def follow(self, settings: TrainingSettings) -> None:
        """Set the trainer's attributes to the settings of a plan."""
        stated = {name: value for name, value in settings.stated().items() if name not in self.stated_by_name}
        self._epoch_is_a_pass = stated.get("iterations_per_epoch") == CASES
        if "iterations_per_epoch" in stated and not self._epoch_is_a_pass:
            self._set_iterations(stated["iterations_per_epoch"])
        stated.pop("iterations_per_epoch", None)
        if "oversampling" in stated:
            self.probabilistic_oversampling = stated.pop("oversampling") == "probability"
        # without auxiliary heads in the plan there is none
        deep_supervision = stated.pop("deep_supervision", True)
        self.enable_deep_supervision = self.enable_deep_supervision and deep_supervision
        if "schedule" in stated:
            self.lr_power = 0.0 if stated["schedule"] == "constant" else POLYNOMIAL
        for name, value in stated.items():
            setattr(self, ATTRIBUTES.get(name, name), value)

    def _set_batch_size_and_oversample(self) -> None:
        percentage = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        if self.probabilistic_oversampling:
            # among processes nnU-Net replaces it by the share of each, of a fixed number of samples
            self.oversample_foreground_percent = percentage

    def _set_iterations(self, iterations: int) -> None:
        self.num_iterations_per_epoch = iterations
        self.num_val_iterations_per_epoch = max(1, iterations // 5)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        training, validation = super().get_tr_and_val_datasets()
        if self._epoch_is_a_pass:
            self._set_iterations(ceil(len(training.identifiers) / self.configuration_manager.batch_size))
            self.print_to_log_file(
                f"an epoch has {self.num_iterations_per_epoch} iterations, for {len(training.identifiers)} cases"
            )
        return training, validation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        configured: tuple[Any, ...] = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            self.inference_allowed_mirroring_axes = None
        return configured

    def run_training(self) -> None:
        try:
            super().run_training()
        except _EndedEarlyError as reason:
            self.print_to_log_file(f"training ends early, after epoch {self.current_epoch - 1}: {reason}")
            self.on_train_end()

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0 and (stop := self._stop_file).exists():
            stop.unlink(missing_ok=True)
            self.print_to_log_file(f"removed {stop}: it was there before the training, which it would have ended")
        final = Path(self.output_folder, "checkpoint_final.pth")
        if self.local_rank == 0 and 0 < self.current_epoch < self.num_epochs and final.is_file():
            # --c prefers it to checkpoint_latest: after an interruption it would go back to where training had ended
            final.replace(final.with_name("checkpoint_latest.pth"))
            self.print_to_log_file("training goes on: checkpoint_final.pth is checkpoint_latest.pth until it ends")

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.current_epoch >= self.num_epochs:
            return
        stop = self._stop_file
        if self._anywhere(stop.exists()):
            if self.local_rank == 0:
                stop.unlink(missing_ok=True)
            raise _EndedEarlyError(f"there was a file {stop}")
        # in float16 a loss may be NaN for an epoch
        losses = np.nan_to_num(self.logger.get_value("val_losses", step=None), nan=np.inf)
        best = int(losses.argmin())
        if self.patience is not None and self._anywhere(len(losses) - 1 - best >= self.patience):
            raise _EndedEarlyError(f"the validation loss was lowest in epoch {best}, {self.patience} epochs ago")

    @property
    def _stop_file(self) -> Path:
        return Path(self.output_folder, STOP_FILE)

    def _anywhere(self, flag: bool) -> bool:
        """Whether it holds in any process: all of them end after the same epoch."""
        if not self.is_ddp:
            return flag
        found = torch.tensor(int(flag), device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return bool(found)
