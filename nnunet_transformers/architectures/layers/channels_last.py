"""Convolutions in 2D and 3D on tensors with the channels last, (batch, *size, channels).

Attention, norms and MLPs want the channels last, and so do fast convolution kernels: what PyTorch sees here is its
channels-last memory format, so no data move between the layers of a network.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...cpu import depthwise as cpu_depthwise


class _ChannelsLast:
    def forward(self, x: Tensor) -> Tensor:
        channels_first = x.movedim(-1, 1)
        if self.is_depthwise and cpu_depthwise.is_applicable(x, self.weight):
            convolve = cpu_depthwise.DepthwiseConvolutionFunction.apply
            return convolve(channels_first, self.weight, self.bias, self.padding).movedim(1, -1)
        return super().forward(channels_first).movedim(1, -1)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself, at stride 1 and without a change of size."""
        return self.groups == self.in_channels > 1 and set(self.stride) == {1}


class Conv2d(_ChannelsLast, nn.Conv2d):
    """``nn.Conv2d`` of (batch, height, width, channels)."""


class Conv3d(_ChannelsLast, nn.Conv3d):
    """``nn.Conv3d`` of (batch, depth, height, width, channels)."""


def convolution(
    dim: int, out_dim: int, kernel_size: Sequence[int], stride: Sequence[int] | int = 1, groups: int = 1
) -> nn.Module:
    """A convolution over ``len(kernel_size)`` axes, padded by half its (odd) kernel."""
    convolution_class = {2: Conv2d, 3: Conv3d}[len(kernel_size)]
    stride = stride if isinstance(stride, int) else tuple(stride)
    padding = tuple(k // 2 for k in kernel_size)
    return convolution_class(dim, out_dim, tuple(kernel_size), stride, padding, groups=groups)
