"""Heads of the pretraining methods that lightly does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from .losses.cross_modal import at_least_single


def reconstruction_head(dim: int, channels: int, stride: Sequence[int]) -> nn.Module:
    """Build the transposed convolution from a feature map to an image (QT-UNet thesis, section 3.3.12).

    Args:
        dim: channels of the feature map.
        channels: image channels.
        stride: voxels of the image per cell of the feature map, for each axis.
    """
    transposed: Any = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(stride)]
    return transposed(dim, channels, tuple(stride), tuple(stride))


def rotation_head(dim: int, num_rotations: int) -> nn.Module:
    """Build the classifier of rotations (QT-UNet thesis, section 3.3.12), (batch, dim) to (batch, num_rotations)."""
    return ProjectionHead([(dim, dim, nn.BatchNorm1d(dim), nn.ReLU()), (dim, num_rotations, None, None)])


class AlignmentHead(nn.Sequential):
    """MGCA's projection head (supplement, section A); applied to tokens it is the supplement's 1x1 convolution.

    Args:
        dim: channels of the features.
        hidden_dim, output_dim: channels of the hidden and of the last layer.
    """

    def __init__(self, dim: int, hidden_dim: int = 2048, output_dim: int = 128) -> None:
        super().__init__(
            nn.Linear(dim, hidden_dim),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, output_dim),
            nn.BatchNorm1d(output_dim, affine=False),
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Project (rows, dim) to (rows, output_dim), at least in single precision, which the losses need."""
        return at_least_single(super().forward(rows))


def apply_to_tokens(head: nn.Module, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """Apply a head to non-padding tokens only: padding would shift the statistics of its batch norm.

    Args:
        head: maps (rows, dim) to (rows, output_dim).
        tokens: (batch, tokens, dim).
        padding: (batch, tokens), true for padding; no token is padding by default.

    Returns:
        (batch, tokens, output_dim), 0 for padding.
    """
    if padding is None:
        return head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    # a GPU's host waits here, once; an index by a mask would wait in the backward pass as well
    kept = (~padding).flatten().nonzero().squeeze(1)
    rows = head(tokens.flatten(0, 1).index_select(0, kept))
    return rows.new_zeros(padding.numel(), rows.shape[1]).index_copy(0, kept, rows).unflatten(0, padding.shape)
