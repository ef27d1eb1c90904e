"""Matching by landmarks that the user gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from ..._reading import read_json, reading
from .matcher import AnatomicalMatcher, Match, Volume, apply_affine, fit_affine, inside

FEWEST = 4


class PrecomputedMatcher(AnatomicalMatcher):
    """Match by the landmarks that two volumes share: an affine map and, if they are many, a spline of its residuals.

    Args:
        landmarks: JSON file ``{"case": {"landmark": [z, y, x], ...}, ...}`` in mm.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has another layout.
    """

    def __init__(self, landmarks: str) -> None:
        what = 'a JSON file of {"case": {"landmark": [z, y, x]}} in mm'
        content = read_json(landmarks, what)
        with reading(landmarks, what):
            self.landmarks = {
                case: {name: np.asarray(point, dtype=float).reshape(3) for name, point in points.items()}
                for case, points in content.items()
            }

    def prepare(self, volume: Volume) -> dict[str, Any]:
        return {"extent": volume.extent, "landmarks": self.landmarks.get(volume.name, {})}

    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        query, key = ({"landmarks": {}, **side} for side in (query, key))  # the cache drops empty entries
        shared = sorted(query["landmarks"].keys() & key["landmarks"].keys())
        if len(shared) < FEWEST:
            nowhere = np.zeros(len(points))
            return Match(np.asarray(points, dtype=float), nowhere, nowhere.astype(bool))
        source, target = (np.stack([side["landmarks"][name] for name in shared]) for side in (query, key))
        affine = fit_affine(source, target)
        found = apply_affine(affine, points)
        if len(shared) > 2 * FEWEST:
            found = found + RBFInterpolator(source, target - apply_affine(affine, source), kernel="linear")(points)
        return Match(found, np.full(len(points), float(len(shared))), inside(found, key["extent"]))
