"""What a training says of itself: libraries, the time left within a long epoch, and the GPU's memory."""

from __future__ import annotations

import math
import platform
import time
from importlib.metadata import version
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from .. import __version__
from .._text import in_words


class ShowsProgress(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    nnU-Net prints nothing within an epoch, which takes most of an hour on a CPU.

    Attributes:
        seconds_between_lines: least time from the start of an epoch to its first line, and from one line to the next;
            shorter epochs have none.
    """

    seconds_between_lines = 120.0
    _finished_iterations = 0
    _epoch_start = _first_end = _last_line = math.inf  # steps outside of an epoch have no line
    _has_stated_memory = False

    def on_train_start(self) -> None:
        super().on_train_start()
        self.print_to_log_file(
            f"Versions: nnunet-transformers {__version__}, nnU-Net {version('nnunetv2')}, PyTorch {torch.__version__}, "
            f"Python {platform.python_version()}"
        )

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._finished_iterations = 0
        self._epoch_start = self._last_line = time.monotonic()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = super().train_step(batch)
        self._finished_iterations += 1
        now = time.monotonic()
        if self._finished_iterations == 1:
            self._first_end = now
        if now - self._last_line >= self.seconds_between_lines and self.local_rank == 0:
            self._last_line = now
            self.print_to_log_file(self._progress(now))
        return result

    def _progress(self, now: float) -> str:
        """Return the line at a time of ``time.monotonic``."""
        done, iterations = self._finished_iterations, self.num_iterations_per_epoch
        line = f"Epoch {self.current_epoch}: {done} of {iterations} iterations in {in_words(now - self._epoch_start)}"
        if done == 1:
            return line
        # the first one may compile the network, or wait for the processes that augment
        each = (now - self._first_end) / (done - 1)
        left = (iterations - done) * each
        epochs = self.num_epochs - self.current_epoch - 1
        return (
            f"{line}, about {in_words(left)} left in this epoch, {in_words(left + epochs * iterations * each)} in all "
            f"{self.num_epochs} epochs, without their validation"
        )

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        if self.device.type == "cuda" and self.local_rank == 0 and not self._has_stated_memory:
            self._has_stated_memory = True
            self.print_to_log_file(f"Peak GPU memory: {torch.cuda.max_memory_allocated(self.device) / 1e9:.2f} GB")
