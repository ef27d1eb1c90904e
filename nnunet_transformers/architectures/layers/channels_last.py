"""Convolutions in 2D and 3D on tensors with the channels last, (batch, *size, channels).

Attention, norms and MLPs want the channels last, and so do fast convolution kernels: what PyTorch sees here is its
channels-last memory format, so no data move between the layers of a network.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class _ChannelsLast:
    def forward(self, x: Tensor) -> Tensor:
        channels_first = x.movedim(-1, 1)
        # on CPU the gradient of a depth-wise kernel over few pixels and many channels takes ten times as long in the
        # channels-last format (10^2 pixels, 768 channels: 10 ms against 1 ms)
        if self.groups > 1 and x[0, ..., 0].numel() < x.shape[-1]:
            return super().forward(channels_first.contiguous()).movedim(1, -1).contiguous()
        return super().forward(channels_first).movedim(1, -1)


class Conv2d(_ChannelsLast, nn.Conv2d):
    """``nn.Conv2d`` of (batch, height, width, channels)."""


class Conv3d(_ChannelsLast, nn.Conv3d):
    """``nn.Conv3d`` of (batch, depth, height, width, channels)."""


class ConvTranspose2d(_ChannelsLast, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` of (batch, height, width, channels)."""


class ConvTranspose3d(_ChannelsLast, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` of (batch, depth, height, width, channels)."""


def convolution(
    dim: int, out_dim: int, kernel_size: Sequence[int], stride: Sequence[int] | int = 1, groups: int = 1
) -> nn.Module:
    """A convolution over ``len(kernel_size)`` axes, padded by half its (odd) kernel."""
    convolution_class = {2: Conv2d, 3: Conv3d}[len(kernel_size)]
    stride = stride if isinstance(stride, int) else tuple(stride)
    padding = tuple(k // 2 for k in kernel_size)
    return convolution_class(dim, out_dim, tuple(kernel_size), stride, padding, groups=groups)


def patch_transpose(dim: int, out_dim: int, stride: Sequence[int]) -> nn.Module:
    """A transposed convolution that makes a block of ``stride`` out of each element."""
    convolution_class = {2: ConvTranspose2d, 3: ConvTranspose3d}[len(stride)]
    return convolution_class(dim, out_dim, tuple(stride), tuple(stride))
