"""Linear layers through the fastest kernel of the device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...cpu import linear as cpu_linear
from ...cpu.dispatch import wants_gradient


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: (..., in_features) to (..., out_features)."""
    if not cpu_linear.is_applicable(x, weight):
        return F.linear(x, weight, bias)
    if wants_gradient(x, weight, bias):
        return cpu_linear.LinearFunction.apply(x, weight, bias)
    return cpu_linear.multiply(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers and GELU between them; parameters are named as in timm's ``Mlp``.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        return self.fc2(self.act(self.fc1(x)))
