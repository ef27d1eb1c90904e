"""Convolution, instance norm, leaky ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNormAct(nn.Module):
    """The block of nnU-Net's CNNs, with which MiT embeds patches (UniMiSS appendix, "Network").

    Args:
        in_dim, out_dim: channels before and after.
        kernel_size: odd edge of the kernel, one integer or one per axis; padding keeps the size at stride 1.
        stride: stride per axis, two or three of them.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int | Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        ndim = len(stride)
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        kernel = (kernel_size,) * ndim if isinstance(kernel_size, int) else tuple(kernel_size)
        self.conv = convolution(in_dim, out_dim, kernel, tuple(stride), tuple(k // 2 for k in kernel), bias=False)
        # channels last, as the tokens around it are and as convolutions are fastest: half the time on CPU
        self.memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[ndim]
        self.conv.weight = nn.Parameter(self.conv.weight.detach().contiguous(memory_format=self.memory_format))
        self.norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[ndim](out_dim, affine=True)
        self.act = nn.LeakyReLU(0.01)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, in_dim, *size) to (batch, out_dim, *size / stride)."""
        if image.shape[1] == 1:
            # a single channel has both memory formats at once, and the convolution would return channels first
            image = image.clone(memory_format=self.memory_format)
        features = self.conv(image)
        if features.device.type == "cpu":
            # one group per channel is instance norm, and the CPU's group norm reads channels last without a copy; on
            # CUDA autocast would run it in float32
            norm = self.norm
            return self.act(F.group_norm(features, features.shape[1], norm.weight, norm.bias, norm.eps))
        return self.act(self.norm(features))
