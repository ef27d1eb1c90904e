"""Callbacks that kill their run."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning import Callback


class KillAt(Callback):
    """Kill the process within an optimiser step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class RequeueAt(Callback):
    """Send the signal by which SLURM announces a requeue after a batch's backward pass."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.is_due = trainer.current_epoch == 0 and batch_idx == self.batch

    def on_after_backward(self, *_: Any) -> None:
        if self.is_due:
            os.kill(os.getpid(), signal.SIGUSR1)
