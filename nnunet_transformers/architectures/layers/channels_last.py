"""Convolutions in 2D and 3D on tensors with the channels last, (batch, *size, channels).

Attention, norms and MLPs need the channels last, and convolution kernels are fastest on them: PyTorch sees its
channels-last memory format here, so no data is copied between the layers of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` of (batch, height, width, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` of (batch, depth, height, width, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


def convolution(
    dim: int, out_dim: int, kernel_size: Sequence[int], stride: Sequence[int] | int = 1, groups: int = 1
) -> Conv2d | Conv3d:
    """Build a convolution over ``len(kernel_size)`` axes, padded by half its (odd) kernel.

    Args:
        dim, out_dim: channels before and after.
        kernel_size: kernel edge per axis, two or three of them.
        stride: stride per axis, or one for all axes.
        groups: channel groups; ``dim`` for a depth-wise convolution.
    """
    classes: dict[int, Callable[..., Conv2d | Conv3d]] = {2: Conv2d, 3: Conv3d}
    stride = stride if isinstance(stride, int) else tuple(stride)
    padding = tuple(k // 2 for k in kernel_size)
    return classes[len(kernel_size)](dim, out_dim, tuple(kernel_size), stride, padding, groups=groups)
