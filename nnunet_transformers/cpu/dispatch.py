"""Conditions under which a layer may choose a CPU kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def may_choose_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether an operation runs eagerly on CPU in the precision of its tensors.

    A compiler or exporter chooses its own kernels, autocast chooses the precision, and fake tensors stand for another
    device. Kernels do not take an input without elements.
    """
    return (
        type(x) is Tensor
        and x.numel() > 0
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may reach one of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
