"""The interface of image-level encoders, which map an image to one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Base of networks that map an image to one feature vector, for classification and cross-dimensional pretraining.

    Args:
        patch_size: the only image size that the backbone takes.
        input_channels: image channels.
        head_hidden_size: feature channels; named as in timm, whose networks thus have the same interface.
    """

    def __init__(self, patch_size: Sequence[int], input_channels: int, head_hidden_size: int) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.input_channels, self.head_hidden_size = input_channels, head_hidden_size

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to (batch, head_hidden_size)."""
