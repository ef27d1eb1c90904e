"""Matrix products of linear layers through oneDNN, which PyTorch has beside MKL.

PyTorch gives float32 products to MKL, which on a processor that is not Intel's leaves AVX-512 unused. oneDNN, which it
has for convolutions, does not: on an AMD EPYC of 2025 it multiplies 2.2 times as fast (benchmarks/NOTES.md). The
operation is the one that torch.compile puts in the place of linear layers in inference; where it is missing or the
processor lacks AVX-512 nothing changes. On an Intel processor it was not measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .dispatch import may_choose_kernel

# a product of two narrow matrices is a sum over a long axis, which MKL splits over the threads and oneDNN does not
WIDE = 128


def _find_kernel() -> torch._ops.OpOverload | None:
    """The operation, or None; private to PyTorch, so that it is tried before it is used."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        kernel = torch.ops.mkldnn._linear_pointwise.default
        _multiply(kernel, torch.ones(2, 2), torch.ones(2, 2), None)
    except (AttributeError, RuntimeError, TypeError):
        return None
    if kernel.overloadpacket not in flop_registry:
        register_flop_formula(kernel.overloadpacket)(_flops)
    return kernel


def _multiply(kernel: torch._ops.OpOverload, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return kernel(x, weight, bias, "none", [], "")


def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


KERNEL = _find_kernel()


def is_applicable(x: Tensor, weight: Tensor) -> bool:
    """Whether there is the kernel and it serves these."""
    return KERNEL is not None and x.dtype == torch.float32 and may_choose_kernel(x, weight)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` without a gradient."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        # with gaps between its rows the kernel takes a thousand times as long
        weight = weight.contiguous()
    return _multiply(KERNEL, x, weight, bias)


class LinearFunction(torch.autograd.Function):
    """A linear layer, its products forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
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
