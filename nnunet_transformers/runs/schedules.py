"""Schedules by optimiser step over the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightly.utils.scheduler import CosineWarmupScheduler
from lightning import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class CosineWarmup(CosineWarmupScheduler):
    """lightly's linear warm-up and cosine decay, for a run that resumes with another length, too.

    The state holds the length of the run before, at whose end the rate would stay.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {name: getattr(self, name) for name in ("warmup_epochs", "max_epochs", "end_value")}
        super().load_state_dict({**state_dict, **own})


def total_steps(trainer: Trainer) -> int:
    """Count the optimiser steps of the whole run.

    Raises:
        ValueError: if neither ``max_epochs`` nor ``max_steps`` ends the run.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError("the schedules need the end of the run: set --trainer.max_epochs or --trainer.max_steps")
    count, epochs = _step_counter(trainer), trainer.max_epochs
    if count is not None and epochs is not None and epochs >= 0:
        # Lightning takes all epochs to be as long as the current one
        steps = count(epochs) if trainer.max_steps < 0 else min(count(epochs), trainer.max_steps)
    return max(1, int(steps))


def _step_counter(trainer: Trainer) -> Callable[[float], int] | None:
    """Return the data module's ``count_steps``, which those with epochs of different lengths have."""
    return getattr(getattr(trainer, "datamodule", None), "count_steps", None)


def cosine_with_warmup(
    optimizer: Optimizer, trainer: Trainer, warmup_epochs: float, end_value: float = 0.0
) -> CosineWarmup:
    """Build a schedule of linear warm-up and cosine decay, to be stepped after every optimiser step.

    Args:
        optimizer: optimiser with the peak learning rate.
        trainer: trainer of the run.
        warmup_epochs: epochs of the linear warm-up.
        end_value: learning rate at the end as a fraction of the peak.

    Raises:
        ValueError: if ``warmup_epochs`` is negative; as ``total_steps``.
    """
    warmup, steps = _warmup_and_total(trainer, warmup_epochs)
    return CosineWarmup(optimizer, warmup, steps, end_value=end_value)


def polynomial_with_warmup(
    optimizer: Optimizer, trainer: Trainer, warmup_epochs: float, power: float = 0.9
) -> LambdaLR:
    """Build a schedule of linear warm-up and polynomial decay to 0; arguments and errors as ``cosine_with_warmup``."""
    warmup, steps = _warmup_and_total(trainer, warmup_epochs)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return float(max(0.0, 1 - (step - warmup) / max(1, steps - warmup)) ** power)

    return LambdaLR(optimizer, factor)


def _warmup_and_total(trainer: Trainer, warmup_epochs: float) -> tuple[int, int]:
    """Count the optimiser steps of the warm-up and of the whole run."""
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}")
    steps = total_steps(trainer)
    if count := _step_counter(trainer):
        return min(steps, count(warmup_epochs)), steps
    trainer.fit_loop.setup_data()  # estimated_stepping_batches does this as well, unless max_steps is given
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return min(steps, round(warmup_epochs * steps_per_epoch)), steps
