"""Matrix products through oneDNN, which PyTorch has beside MKL.

PyTorch gives float32 products to MKL, which leaves AVX-512 unused on processors that are not Intel's. oneDNN, which
PyTorch has for convolutions, uses it: on an AMD EPYC of 2025 it multiplies 2.2 times as fast (benchmarks/NOTES.md).
torch.compile replaces linear layers by the same operation in inference. Where PyTorch lacks it or the processor lacks
AVX-512, ``linear`` is ``F.linear``. It was not measured on Intel processors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

from ..architectures.layers.patch_transpose import PatchTranspose2d, PatchTranspose3d
from .dispatch import may_choose_kernel, wants_gradient

# a product of two narrow matrices is a sum over a long axis, which MKL splits over the threads and oneDNN does not
WIDE = 128


def _find_kernel() -> Any:
    """The operation, or None; it is private to PyTorch, so it is tried before it is used."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        kernel = torch.ops.mkldnn._linear_pointwise.default
        _call(kernel, torch.ones(2, 2), torch.ones(2, 2), None)
    except (AttributeError, RuntimeError, TypeError):
        return None
    if kernel.overloadpacket not in flop_registry:
        register_flop_formula(kernel.overloadpacket)(_flops)
    return kernel


def _call(kernel: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return kernel(x, weight, bias, "none", [], "")


def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


KERNEL = _find_kernel()


def is_applicable(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel exists and takes these operands."""
    return KERNEL is not None and x.dtype == torch.float32 and may_choose_kernel(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` through the faster kernel: (..., in_features) to (..., out_features)."""
    if not is_applicable(x, weight):
        return F.linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        return LinearFunction.apply(x, weight, bias)
    return multiply(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` by the kernel, without a gradient."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        # with gaps between its rows the kernel takes a thousand times as long
        weight = weight.contiguous()
    return _call(KERNEL, x, weight, bias)


class LinearFunction(torch.autograd.Function):
    """``F.linear`` with the kernel's products in forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply.

        Args:
            x: (..., in_features).
            weight: (out_features, in_features).
            bias: (out_features), or None.
        """
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows, grad_rows = x.flatten(0, -2), grad_out.flatten(0, -2)
        grad_x = multiply(grad_rows, weight.T).view(x.shape) if needs_x else None
        grad_weight = _weight_gradient(rows, grad_rows) if needs_weight else None
        return grad_x, grad_weight, grad_rows.sum(0) if needs_bias else None


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """(length, in) and (length, out) to (out, in)."""
    if max(x.shape[1], grad.shape[1]) < WIDE:
        return grad.T @ x
    # the kernel copies its second operand into the layout that it wants, best in long rows
    return multiply(x.T, grad.T).T if grad.shape[1] > x.shape[1] else multiply(grad.T, x.T)


class CPULinear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class CPUPatchTranspose2d(PatchTranspose2d):
    """``PatchTranspose2d`` by ``linear``."""

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)


class CPUPatchTranspose3d(PatchTranspose3d):
    """``PatchTranspose3d`` by ``linear``."""

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)
