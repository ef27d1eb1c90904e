"""Lines of a run: one for each epoch, with the time left, and more within long ones."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer

from .._text import in_words


class EpochLines(Callback):
    """Print what an epoch gave and the time left, on a terminal or not, and write the metrics so far to their file.

    Attributes:
        seconds_between_lines: least time from the start of an epoch to a line within it, and from one to the next; a
            progress bar takes their place.
    """

    seconds_between_lines: ClassVar[float] = 120.0

    def __init__(self) -> None:
        self.first = self.start = self.last_line = 0.0
        self.before = self.seen = 0  # epochs before this process, and batches of the current one before it

    def on_train_start(self, trainer: Any, module: LightningModule) -> None:
        self.first, self.before = time.perf_counter(), trainer.current_epoch
        # one resumed within an epoch starts none; one resumed at its end keeps its batches until the next epoch starts
        self.on_train_epoch_start(trainer, module)
        self.seen = trainer.fit_loop.epoch_loop.batch_progress.current.completed

    def on_train_epoch_start(self, trainer: Any, module: LightningModule) -> None:
        self.start = self.last_line = time.perf_counter()
        self.seen = 0
        # metrics from the first epoch on, however short it is
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches  # infinite where the data do not end
        trainer.log_every_n_steps = max(1, int(min(trainer.log_every_n_steps, steps)))

    def on_train_batch_end(self, trainer: Any, module: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        now = time.perf_counter()
        if now - self.last_line < self.seconds_between_lines or trainer.progress_bar_callback is not None:
            return
        self.last_line = now
        if trainer.is_global_zero:
            done, batches = index + 1, trainer.num_training_batches
            print(batches_line(trainer.current_epoch + 1, done, batches, now - self.start, self.seen), flush=True)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        now, done = time.perf_counter(), trainer.current_epoch + 1
        # as if this process had seen the whole epoch, at the same rate
        self.first -= (now - self.start) * self.seen / max(1, trainer.num_training_batches - self.seen)
        self.seen = 0
        each = (now - self.first) / (done - self.before)
        print(epoch_line(done, epochs_of(trainer), values_of(trainer.callback_metrics), now - self.start, each))
        for logger in trainer.loggers:
            logger.save()


def epochs_of(trainer: Trainer) -> int | None:
    """Epochs of the whole run, by its limits of epochs and of steps; None if it has none."""
    limits = [trainer.max_epochs] if trainer.max_epochs and trainer.max_epochs > 0 else []
    steps = trainer.global_step / (trainer.current_epoch + 1)
    if trainer.max_steps > 0 and steps:
        limits.append(-(-trainer.max_steps // max(1, round(steps))))
    return min(limits, default=None)


def values_of(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of an epoch; of those with a value for the step and for the epoch, the latter."""
    return {
        name.removesuffix("_epoch"): float(value)
        for name, value in metrics.items()
        if f"{name.removesuffix('_step')}_epoch" not in metrics
    }


def batches_line(epoch: int, done: int, batches: float, seconds: float, before: int = 0) -> str:
    """The line within an epoch, after ``done`` of its ``batches``, which are infinite where the data do not end.

    ``before`` of them were done by the run that this one resumed, which the ``seconds`` do not count.

    Examples:
        >>> batches_line(3, 20, 50, 120.0)
        'epoch 3: 20 of 50 batches in 2.0 min, about 3.0 min left in this epoch'
        >>> batches_line(3, 40, 50, 60.0, before=30)
        'epoch 3: 40 of 50 batches, the last 10 in 1.0 min, about 1.0 min left in this epoch'
    """
    took = f", the last {done - before} in {in_words(seconds)}" if before else f" in {in_words(seconds)}"
    if batches == float("inf"):
        return f"epoch {epoch}: {done} batches{took}"
    left = in_words((batches - done) * seconds / (done - before))
    return f"epoch {epoch}: {done} of {batches} batches{took}, about {left} left in this epoch"


def epoch_line(done: int, epochs: int | None, values: dict[str, float], seconds: float, each: float) -> str:
    """The line of an epoch.

    Args:
        done: finished epochs.
        epochs: of the whole run, if known.
        values: metrics by name.
        seconds: of this epoch.
        each: seconds of an epoch on the average.

    Examples:
        >>> epoch_line(3, 50, {"loss": 1.2345}, 12.0, 12.0)
        'epoch 3 of 50: loss 1.234; 12 s, 9.4 min left'
    """
    of = "" if epochs is None else f" of {epochs}"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    left = "" if epochs is None else f", {in_words(max(0, epochs - done) * each)} left"
    return f"epoch {done}{of}: {metrics}; {in_words(seconds)}{left}"
