"""Gradients of depth-wise convolutions through PyTorch's forward kernel.

On CPU, PyTorch's backward kernels for depth-wise convolutions reach a tenth of the forward kernel's rate. Both
gradients are convolutions: the input's gradient is the output's gradient convolved with the flipped kernel, and the
kernel's is the input convolved with the output's gradient. Computed as such, with the bias's gradient as a plain sum, a
backward pass takes a quarter of the time (benchmarks/NOTES.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..architectures.layers.channels_last import Conv2d, Conv3d
from .dispatch import may_choose_kernel, wants_gradient


def is_depthwise(layer: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether ``DepthwiseConvolutionFunction`` can compute a layer: depth-wise, stride 1, sizes kept."""
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and set(layer.stride) == set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
        and all(k % 2 for k in layer.kernel_size)
        and layer.padding == tuple(k // 2 for k in layer.kernel_size)
    )


def is_applicable(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution runs eagerly on CPU and a backward pass may reach it."""
    return x.dtype in (torch.float32, torch.float64) and may_choose_kernel(x, weight) and wants_gradient(x, weight)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    convolution = F.conv2d if len(padding) == 2 else F.conv3d
    return convolution(x, weight, bias, padding=padding, groups=weight.shape[0])


class DepthwiseConvolutionFunction(torch.autograd.Function):
    """A depth-wise convolution of stride 1 with an odd kernel, padded by half of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        """Convolve.

        Args:
            x: (batch, channels, *size).
            weight: (channels, 1, *kernel_size).
            bias: (channels), or None.
            padding: half of the kernel on each axis.

        Returns:
            (batch, channels, *size).
        """
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _convolve(x, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        axes = list(range(2, x.dim()))
        grad_x = _convolve(grad_out, weight.flip(axes), None, ctx.padding) if ctx.needs_input_grad[0] else None
        # the maps of a sample serve as kernels, so samples go one at a time
        samples = zip(x.split(1), grad_out.split(1), strict=True)
        gradients = [_convolve(sample, grad.transpose(0, 1), None, ctx.padding) for sample, grad in samples]
        grad_bias = grad_out.sum([0, *axes]) if ctx.needs_input_grad[2] else None
        return grad_x, sum(gradients[1:], gradients[0]).transpose(0, 1), grad_bias, None


class CPUConv2d(Conv2d):
    """A depth-wise ``Conv2d`` through ``DepthwiseConvolutionFunction``."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_applicable(x, self.weight):
            return super().forward(x)
        return _channels_last(x, self)


class CPUConv3d(Conv3d):
    """A depth-wise ``Conv3d`` through ``DepthwiseConvolutionFunction``."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_applicable(x, self.weight):
            return super().forward(x)
        return _channels_last(x, self)


def _channels_last(x: Tensor, layer: Conv2d | Conv3d) -> Tensor:
    out: Tensor = DepthwiseConvolutionFunction.apply(x.movedim(-1, 1), layer.weight, layer.bias, layer.padding)
    return out.movedim(1, -1)
