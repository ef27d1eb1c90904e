"""Batches of all processes, for losses and heads that need them."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def gather(features: Tensor) -> Tensor:
    """Gather the rows of all processes with gradients: (batch, ...) to (processes * batch, ...).

    A head with batch norm, or a contrastive loss, then gives on each of n processes the result of one process with an n
    times larger batch; so do all gradients after DDP has averaged them.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]
