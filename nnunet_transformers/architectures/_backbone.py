"""The interface of image-level encoders: an image to one vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """An image to one feature vector, on which classifiers and cross-dimensional pretraining build.

    Args:
        patch_size: the only image size that the backbone takes.
        input_channels: image channels.
        head_hidden_size: channels of the features, by timm's name, so that its networks have the same interface.
    """

    def __init__(self, patch_size: Sequence[int], input_channels: int, head_hidden_size: int) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.input_channels, self.head_hidden_size = input_channels, head_hidden_size

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """(batch, input_channels, *patch_size) to (batch, head_hidden_size)."""
