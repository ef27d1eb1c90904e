"""Anatomical matching: five matchers with one interface find the points of one subject in another."""

from __future__ import annotations

from .affine import AffineMatcher
from .embedding import EmbeddingMatcher, MatcherCheckpoint
from .hybrid import HybridMatcher
from .identity import IdentityMatcher
from .matcher import AnatomicalMatcher, Match, Volume
from .precomputed import PrecomputedMatcher

MATCHERS: dict[str, type[AnatomicalMatcher]] = {
    "identity": IdentityMatcher,
    "affine": AffineMatcher,
    "embedding": EmbeddingMatcher,
    "hybrid": HybridMatcher,
    "precomputed": PrecomputedMatcher,
}

__all__ = [
    "MATCHERS",
    "AffineMatcher",
    "AnatomicalMatcher",
    "EmbeddingMatcher",
    "HybridMatcher",
    "IdentityMatcher",
    "Match",
    "MatcherCheckpoint",
    "PrecomputedMatcher",
    "Volume",
]
