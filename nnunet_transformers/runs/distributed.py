"""Losses over the batches of all processes."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather(features: Tensor) -> Tensor:
    """The rows of all processes, with gradients: (batch, ...) to (processes * batch, ...).

    A head that normalises over the batch, or a loss that contrasts its rows, then gives on each of n processes what it
    gives one with an n times larger batch, and after DDP's averaging so do all gradients.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    return torch.cat(all_gather(features))
