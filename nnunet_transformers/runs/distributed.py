"""Batches of all processes."""

from __future__ import annotations

import torch
import torch.distributed
from lightning import Trainer
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather(features: Tensor) -> Tensor:
    """Gather the rows of all processes with gradients, for heads with batch norm and contrastive losses.

    On each of n processes they then give the result of one process with an n times larger batch. So do the gradients
    after DDP has averaged them.

    Args:
        features: (batch, ...).

    Returns:
        (processes * batch, ...); ``features`` in a run of one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    return torch.cat(all_gather(features))


def samples_per_step(trainer: Trainer, batch_size: int) -> int:
    """Count the samples of an optimiser step: the accumulated batches of all processes.

    Args:
        trainer: trainer of the run.
        batch_size: samples per batch and device.
    """
    return batch_size * trainer.world_size * trainer.accumulate_grad_batches
