"""Network of the anatomical embedding: one vector per cell, similar for the same anatomy in different subjects.

Yan et al., "SAM: Self-supervised learning of pixel-wise anatomical embeddings in radiological images",
https://arxiv.org/abs/2012.02383. This network is smaller and accepts volumes of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

STRIDE = 2
MAX_LEVELS = 10


class AnatomyEmbedding(nn.Module):
    """Residual encoder with a feature pyramid: a fine embedding at stride 2 and a coarse one at the deepest stride.

    Embeddings of crops and of whole volumes are compared, and their instance statistics differ; the network therefore
    has batch normalisation (SAM, section 3.2).

    Args:
        channels: channels of each resolution, the first at stride 2.
        dim: dimension of the embeddings.

    Raises:
        ValueError: if there are no or more than ``MAX_LEVELS`` resolutions.

    Attributes:
        strides: stride of the fine and of the coarse embedding.
    """

    def __init__(self, channels: Sequence[int] = (24, 48, 96), dim: int = 64) -> None:
        super().__init__()
        if not 1 <= len(channels) <= MAX_LEVELS:
            raise ValueError(f"channels must have 1 to {MAX_LEVELS} entries, got {len(channels)}")
        self.encoder = ResidualEncoder(
            input_channels=1,
            n_stages=len(channels),
            features_per_stage=list(channels),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[STRIDE] * len(channels),
            n_blocks_per_stage=1,
            norm_op=nn.BatchNorm3d,
            norm_op_kwargs={"affine": True},
            nonlin=nn.ReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
        )
        self.laterals = nn.ModuleList(nn.Conv3d(c, dim, 1) for c in channels)
        self.fine, self.coarse = nn.Conv3d(dim, dim, 3, padding=1), nn.Conv3d(channels[-1], dim, 3, padding=1)
        self.strides = (STRIDE, STRIDE ** len(channels))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images.

        Args:
            image: (batch, 1, *size).

        Returns:
            fine and coarse embeddings of unit length, (batch, dim, *cells) each. Cells are centred at every
            ``stride``-th voxel, beginning with the first.
        """
        size, deepest = image.shape[2:], self.strides[1]
        # pad to whole cells: convolution and pooling of a residual block round odd sizes differently
        missing = [-n % deepest for n in reversed(size)]
        features = self.encoder(F.pad(image, [n for m in missing for n in (0, m)], mode="replicate"))
        pyramid = self.laterals[-1](features[-1])
        for lateral, feature in zip(self.laterals[-2::-1], features[-2::-1], strict=True):
            pyramid = lateral(feature) + F.interpolate(pyramid, feature.shape[2:], mode="trilinear")
        maps = zip((self.fine(pyramid), self.coarse(features[-1])), self.strides, strict=True)
        fine, coarse = (F.normalize(_within(embedding, size, stride), dim=1) for embedding, stride in maps)
        return fine, coarse


def _within(grid: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """Crop a grid to the cells that are centred in an image of ``size``."""
    cells: tuple[Any, ...] = (..., *(slice(-(-n // stride)) for n in size))
    return grid[cells]


def resample(grid: Tensor, points: Tensor, stride: int) -> Tensor:
    """Interpolate a grid's values linearly at points.

    Args:
        grid: (channels, *cells).
        points: (points, 3) in voxels of the image.
        stride: voxels of the image per cell.

    Returns:
        (points, channels); the border's values outside the grid.
    """
    # kernels of 3 with padding of 1 centre cell i at voxel i * stride
    # an axis after the other: a tensor of the grid's size would be a copy to a GPU, for which its host waits
    scale = [2 / stride / max(1, n - 1) for n in grid.shape[1:]]
    position = torch.stack([points[:, axis] * scale[axis] for axis in range(3)], dim=1) - 1
    found = F.grid_sample(
        grid[None], position.flip(-1)[None, :, None, None].to(grid.dtype), padding_mode="border", align_corners=True
    )
    return found[0, :, :, 0, 0].T


def sample(grid: Tensor, points: Tensor, stride: int) -> Tensor:
    """Interpolate embeddings at points and normalise them to unit length; see ``resample``."""
    return F.normalize(resample(grid, points, stride), dim=1)


def cell_positions(cells: Sequence[int], stride: int, device: torch.device | None = None) -> Tensor:
    """Return the centres of a grid's cells, (cells, 3) in voxels of the image, in the order of ``flatten``."""
    axes = [stride * torch.arange(n, dtype=torch.float32, device=device) for n in cells]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
