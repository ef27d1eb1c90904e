"""Matching by the self-supervised anatomical embedding (SAM, https://arxiv.org/abs/2012.02383)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...weights.described import build_filled
from ...weights.sealed import SealedCheckpoint
from .embedding_network import AnatomyEmbedding, cell_positions, resample, sample
from .matcher import AnatomicalMatcher, Match, Volume

LEVELS = ("fine", "coarse")
# cells of the key that are compared at a time
CELLS = 2**15


@dataclass(frozen=True)
class MatcherCheckpoint(SealedCheckpoint):
    """Weights of an ``AnatomyEmbedding`` and their description.

    Attributes:
        settings: arguments of ``AnatomyEmbedding``.
        spacing: mm per voxel and axis of the training views.
        recipe: settings of the run, plain types.
    """

    kind: ClassVar[str] = "matcher"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)
    remedy: ClassVar[str] = "`nnunet-transformers pretrain fit --config matcher` writes matcher checkpoints"
    tuples: ClassVar[tuple[str, ...]] = ("spacing",)
    settings: dict[str, Any]
    spacing: tuple[float, ...]
    recipe: dict[str, Any] = field(default_factory=dict)


class EmbeddingMatcher(AnatomicalMatcher):
    """Match by the largest mean similarity of fine and coarse embeddings.

    The similarity predicts the error poorly. Validity is therefore cycle consistency: matched back into the query
    volume, a match has to return close to the point.

    Args:
        weights: ``matcher.pth``, written by the recipe ``matcher``.
        cycle_error: largest valid distance in mm between a point and the match of its match; by default four voxels of
            the training images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a matcher checkpoint.
    """

    def __init__(self, weights: str, cycle_error: float | None = None) -> None:
        checkpoint = MatcherCheckpoint.load(weights)
        self.network = build_filled(lambda: AnatomyEmbedding(**checkpoint.settings), checkpoint.weights, weights)
        self.network.eval()
        self.spacing = checkpoint.spacing
        self.cycle_error = 4 * max(checkpoint.spacing) if cycle_error is None else cycle_error

    @torch.inference_mode()
    def prepare(self, volume: Volume) -> dict[str, Any]:
        fine, coarse = self.network(torch.from_numpy(volume.grey)[None, None])
        # half precision, because embeddings are the largest part of the cache
        return {
            "fine": fine[0].half().numpy(),
            "coarse": coarse[0].half().numpy(),
            "spacing": np.array(volume.spacing),
            "extent": volume.extent,
        }

    @torch.inference_mode()
    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        found, score = self._find(query, key, points)
        back, _ = self._find(key, query, found)
        return Match(found, score, np.linalg.norm(back - points, axis=1) <= self.cycle_error)

    def _find(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> tuple[NDArray, NDArray]:
        """Return the best matches of points (points, 3) in mm, and their similarities (points,)."""
        voxels = torch.from_numpy(points / query["spacing"]).float()
        fine_stride, coarse_stride = self.network.strides
        fine, coarse = (sample_near(query[k], voxels, s) for k, s in zip(LEVELS, self.network.strides, strict=True))
        grid = torch.from_numpy(np.array(key["coarse"])).float()
        at_coarse = (coarse @ grid.flatten(1)).unflatten(1, grid.shape[1:])
        size = key["fine"].shape[1:]
        score, found = torch.full((len(points),), -torch.inf), torch.zeros(len(points), 3)
        # some planes of the fine grid at a time, which may be mapped from a file
        planes = max(1, CELLS // (size[1] * size[2]))
        for first in range(0, size[0], planes):
            part = torch.from_numpy(np.array(key["fine"][:, first : first + planes])).float()
            cells = cell_positions(part.shape[1:], fine_stride)
            cells[:, 0] += first * fine_stride
            similarity = (part.flatten(1).T @ fine.T + resample(at_coarse, cells, coarse_stride)) / 2
            best, where = similarity.max(dim=0)
            found[best > score] = cells[where[best > score]]
            score = torch.maximum(score, best)
        return np.minimum(found.double().numpy() * key["spacing"], key["extent"]), score.numpy()


def sample_near(grid: NDArray, voxels: Tensor, stride: int) -> Tensor:
    """Interpolate embeddings at points as ``sample``, from the part of the grid around them only.

    Args:
        grid: (channels, *cells).
        voxels: (points, 3) in voxels of the image.
        stride: voxels of the image per cell.

    Returns:
        (points, channels), of unit length.
    """
    size = torch.tensor(grid.shape[1:])
    cells = voxels / stride
    first = torch.minimum(cells.amin(0).floor().long().clamp(min=0), size - 1)
    last = torch.minimum(cells.amax(0).ceil().long().clamp(min=0), size - 1)
    box = [slice(None), *(slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True))]
    near = torch.from_numpy(np.array(grid[tuple(box)])).float()
    return sample(near, voxels - first * stride, stride)
