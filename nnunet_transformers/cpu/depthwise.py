"""Depth-wise convolution on CPU with gradients from its forward kernel.

PyTorch's backward kernels for depth-wise convolutions reach a tenth of what the forward one does. Both gradients are
convolutions themselves: that of the input is one of the output's gradient with the flipped kernel, that of the kernel
one of the input with the output's gradient as its kernel. Computed as such, and the bias's as a plain sum, a backward
pass takes a quarter of the time (benchmarks/NOTES.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import may_choose_kernel, wants_gradient


def is_applicable(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient will be wanted of a convolution on CPU."""
    return x.dtype in (torch.float32, torch.float64) and may_choose_kernel(x, weight) and wants_gradient(x, weight)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    convolution = {2: F.conv2d, 3: F.conv3d}[len(padding)]
    return convolution(x, weight, bias, padding=padding, groups=weight.shape[0])


class DepthwiseConvolutionFunction(torch.autograd.Function):
    """A depth-wise convolution of stride 1 with an odd kernel, padded by half of it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        """Convolve.

        Args:
            x: (batch, channels, *size).
            weight: (channels, 1, *kernel_size).
            bias: (channels), or None.
            padding: half of the kernel on each axis.
        """
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _convolve(x, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        axes = list(range(2, x.dim()))
        grad_x = _convolve(grad_out, weight.flip(axes), None, ctx.padding) if ctx.needs_input_grad[0] else None
        # a sample's maps are the kernels of that sample, hence one at a time
        samples = zip(x.split(1), grad_out.split(1), strict=True)
        grad_weight = sum(_convolve(sample, grad.transpose(0, 1), None, ctx.padding) for sample, grad in samples)
        grad_bias = grad_out.sum([0, *axes]) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight.transpose(0, 1), grad_bias, None
