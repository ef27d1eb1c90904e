"""Affine registration that starts from cycle-consistent matches of the anatomical embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .affine import LONGEST, register, small_image
from .embedding import EmbeddingMatcher
from .matcher import FAILED, AffineMapMatcher, Volume, apply_affine, fit_affine, random_points

# points to match, smallest number of inliers, rounds of the robust fit
POINTS, FEWEST, ROUNDS = 200, 12, 10
# plausible singular values of a map between two subjects
SMALLEST, LARGEST = 0.5, 2.0


class HybridMatcher(AffineMapMatcher):
    """Fit an affine map to the embedding's valid matches and refine it by registration.

    The embedding avoids wrong minima of the registration; the registration refines the embedding's coarse matches. A
    match is valid if the map of the other direction leads back, since neither similarity predicts the error.

    Args:
        weights, cycle_error: as for ``EmbeddingMatcher``, of its matches and of those of the maps.
        iterations: maximum iterations of the registration at each resolution.
    """

    def __init__(self, weights: str, cycle_error: float | None = None, iterations: int = 60) -> None:
        self.embedding = EmbeddingMatcher(weights, cycle_error)
        self.cycle_error = self.embedding.cycle_error
        self.spacing = self.embedding.spacing
        self.iterations = iterations

    def prepare(self, volume: Volume) -> dict[str, Any]:
        small = small_image(volume, LONGEST)
        embedding = self.embedding.prepare(volume)
        return {"name": volume.name, "extent": volume.extent, "embedding": embedding, "small": small}

    def affine_map(self, query: dict[str, Any], key: dict[str, Any]) -> tuple[NDArray, float]:
        seeds = random_points(query["extent"], POINTS, np.random.default_rng(0))
        matched = self.embedding.match(query["embedding"], key["embedding"], seeds)
        affine = robust_affine(seeds[matched.valid], matched.points[matched.valid], self.embedding.cycle_error)
        if affine is None:
            # too few valid matches for a map: register from aligned centres
            return register(query["small"], key["small"], np.eye(4), self.iterations, centre=True)
        return self._refine(query["small"], key["small"], affine)

    def _refine(self, query: dict[str, Any], key: dict[str, Any], affine: NDArray) -> tuple[NDArray, float]:
        refined, similarity = register(query, key, affine, self.iterations)
        if similarity == FAILED:
            return affine, 0.0
        # reject a registration that moves far from the embedding's matches
        corners = np.stack(np.meshgrid(*([0, e] for e in query["extent"]), indexing="ij"), -1).reshape(-1, 3)
        moved = np.linalg.norm(apply_affine(refined, corners) - apply_affine(affine, corners), axis=1)
        return (refined, similarity) if moved.mean() <= 5 * self.embedding.cycle_error else (affine, similarity)


def robust_affine(source: NDArray, target: NDArray, tolerance: float) -> NDArray | None:
    """Fit an affine map robustly, by repeated fits to the inliers of the previous map.

    Args:
        source, target: (points, 3) in mm.
        tolerance: residual in mm up to which a point is always an inlier.

    Returns:
        the 4x4 matrix; None if there are too few inliers, or no two subjects differ as much as the map states.
    """
    if len(source) < FEWEST:
        return None
    # start from the median shift, which is robust to outliers
    matrix = np.eye(4)
    matrix[:3, 3] = np.median(target - source, axis=0)
    for _ in range(ROUNDS):
        error = np.linalg.norm(apply_affine(matrix, source) - target, axis=1)
        near = error <= max(tolerance, 1.5 * np.median(error))
        if near.sum() < FEWEST:
            return None
        matrix = fit_affine(source[near], target[near])
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return matrix if stretch.min() >= SMALLEST and stretch.max() <= LARGEST else None
