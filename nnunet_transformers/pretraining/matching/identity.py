"""The same place in every field of view: for tests, ablations and data that are aligned already."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .matcher import AnatomicalMatcher, Match, Volume


class IdentityMatcher(AnatomicalMatcher):
    """A point keeps its relative position: at a third of the query's height it is at a third of the key's."""

    def prepare(self, volume: Volume) -> NDArray:
        return volume.extent

    def match(self, query: NDArray, key: NDArray, points: NDArray) -> Match:
        found = points / np.maximum(query, 1e-6) * key
        everywhere = np.ones(len(points))
        return Match(found, everywhere, everywhere.astype(bool))
