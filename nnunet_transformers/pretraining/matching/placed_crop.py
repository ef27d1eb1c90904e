"""Embedded crops whose positions in their volume are known, and the points that two of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PlacedCrop(NamedTuple):
    """Embeddings of a crop and its position in the volume.

    Attributes:
        grids: fine and coarse embeddings, (dim, *cells) each.
        first: first voxel of the crop, (3,) in voxels of the volume.
        step: distance between neighbouring voxels of the crop, (3,) in voxels of the volume.
    """

    grids: Sequence[Tensor]
    first: Tensor
    step: Tensor

    def to_volume(self, points: Tensor) -> Tensor:
        """Map points (points, 3) from voxels of the crop to voxels of the volume."""
        return self.first + self.step * points

    def from_volume(self, points: Tensor) -> Tensor:
        """Map points (points, 3) from voxels of the volume to voxels of the crop."""
        return (points - self.first) / self.step


def shared_points(query: PlacedCrop, key: PlacedCrop, size: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Draw random points of one crop and keep those that lie in another crop of the same volume.

    Args:
        query, key: crops of one size.
        size: voxels per axis of the crops, (3,).
        number: points to draw.

    Returns:
        the points in voxels of the query and in voxels of the key, (points, 3) each, at most ``number``.
    """
    points = torch.rand(number, 3, device=size.device) * (size - 1)
    matches = key.from_volume(query.to_volume(points))
    inside = ((matches >= 0) & (matches <= size - 1)).all(dim=1)
    # a GPU's host waits here, once
    kept = inside.nonzero().squeeze(1)
    return points[kept], matches[kept]
