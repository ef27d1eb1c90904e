"""Schedules by optimiser step, for however long the trainer was told to train."""

from __future__ import annotations

import math
from typing import Any

from lightly.utils.scheduler import CosineWarmupScheduler
from lightning import Trainer
from torch.optim import Optimizer


def total_steps(trainer: Trainer) -> int:
    """Optimiser steps in the whole run.

    Raises:
        ValueError: if the run has no end, which schedules need.
    """
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError("the schedules need to know where a run ends: set --trainer.max_epochs or --trainer.max_steps")
    return max(1, int(steps))


def cosine_with_warmup(
    optimizer: Optimizer, trainer: Trainer, warmup_epochs: float, end_value: float = 0.0
) -> dict[str, Any]:
    """A rate that rises linearly for some epochs and falls along a cosine, as ``configure_optimizers`` returns it.

    Args:
        optimizer: with the highest rate.
        trainer: of the run.
        warmup_epochs: with a rising rate.
        end_value: part of the highest rate that is left at the end.
    """
    steps = total_steps(trainer)
    trainer.fit_loop.setup_data()  # as estimated_stepping_batches does, but not where max_steps says all
    steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    warmup = min(steps, round(warmup_epochs * steps_per_epoch))
    scheduler = CosineWarmupScheduler(optimizer, warmup, steps, end_value=end_value)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
