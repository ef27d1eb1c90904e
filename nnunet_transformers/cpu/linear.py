"""Matrix products through oneDNN instead of MKL.

PyTorch computes float32 products with MKL, which does not use AVX-512 on processors other than Intel's. oneDNN, which
PyTorch uses for convolutions, does: on an AMD EPYC of 2025 it is 2.2 times as fast (benchmarks/NOTES.md). torch.compile
replaces linear layers by the same operation in inference. Without oneDNN in PyTorch or AVX-512 in the processor,
``linear`` is ``F.linear``. It has not been measured on Intel processors.
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

# the gradient of a narrow weight is a sum over a long axis, which MKL splits over threads and oneDNN does not
WIDE = 128


def _find_kernel() -> Any:
    """Find oneDNN's operation, or None. It is private to PyTorch, so one trial call precedes its use."""
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
    out: Tensor = kernel(x, weight, bias, "none", [], "")
    return out


def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


KERNEL = _find_kernel()


def is_applicable(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel exists and takes these operands."""
    return KERNEL is not None and x.dim() > 1 and x.dtype == torch.float32 and may_choose_kernel(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` through the faster kernel: (..., in_features) to (..., out_features)."""
    if not is_applicable(x, weight):
        return F.linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        out: Tensor = LinearFunction.apply(x, weight, bias)
        return out
    return multiply(x, weight, bias)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` through the kernel, without a gradient."""
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        # the kernel takes a thousand times as long on a matrix with gaps between its rows
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

        Returns:
            (..., out_features).
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
    """Map the input (length, in) and the output's gradient (length, out) to the weight's gradient (out, in)."""
    if max(x.shape[1], grad.shape[1]) < WIDE:
        return grad.T @ x
    # the kernel copies its second operand into its own layout, which is fastest with long rows
    return multiply(x.T, grad.T).T if grad.shape[1] > x.shape[1] else multiply(grad.T, x.T)


class CPULinear(nn.Linear):
    """``nn.Linear`` through ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class CPUPatchTranspose2d(PatchTranspose2d):
    """``PatchTranspose2d`` through ``linear``."""

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)


class CPUPatchTranspose3d(PatchTranspose3d):
    """``PatchTranspose3d`` through ``linear``."""

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)
