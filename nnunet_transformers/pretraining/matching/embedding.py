"""Matching by the self-supervised anatomical embedding (SAM, https://arxiv.org/abs/2012.02383)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...weights.described import build_filled
from ...weights.sealed import SealedCheckpoint
from .embedding_network import AnatomyEmbedding, cell_positions, resample, sample
from .matcher import AnatomicalMatcher, Match, Volume


@dataclass(frozen=True)
class MatcherCheckpoint(SealedCheckpoint):
    """Weights of an ``AnatomyEmbedding`` and their description.

    Attributes:
        settings: arguments of ``AnatomyEmbedding``.
        spacing: mm per voxel and axis of the training images.
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
        grids = [torch.from_numpy(key[level]).float() for level in ("fine", "coarse")]
        candidates = cell_positions(grids[0].shape[1:], self.network.strides[0])
        similarity = torch.zeros(len(candidates), len(points))
        for level, grid, stride in zip(("fine", "coarse"), grids, self.network.strides, strict=True):
            embeddings = sample(torch.from_numpy(query[level]).float(), voxels, stride)
            at_cells = (embeddings @ grid.flatten(1)).unflatten(1, grid.shape[1:])
            similarity += resample(at_cells, candidates, stride) / 2
        score, best = similarity.max(dim=0)
        found = candidates[best].double().numpy() * key["spacing"]
        return np.minimum(found, key["extent"]), score.numpy()
