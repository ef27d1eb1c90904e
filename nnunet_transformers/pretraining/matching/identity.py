"""Matching by relative position, for tests, ablations and aligned data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matcher import AnatomicalMatcher, Match, Volume


class IdentityMatcher(AnatomicalMatcher):
    """Match points by their relative position: a third of the query's height maps to a third of the key's."""

    def prepare(self, volume: Volume) -> dict[str, Any]:
        return {"extent": volume.extent}

    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        found = points / np.maximum(query["extent"], 1e-6) * key["extent"]
        everywhere = np.ones(len(points))
        return Match(found, everywhere, everywhere.astype(bool))
