"""Activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, active: bool) -> Tensor:
    """``function(x)``; if ``active``, what backward needs of its inside is computed again rather than kept."""
    if active and torch.is_grad_enabled():
        return checkpoint(function, x, use_reentrant=False)
    return function(x)
