"""What an anatomical matcher does: tell where a point of one person's body is in another's.

Points are in mm from the first voxel of a prepared image, in the order of its axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._atomic import replacing


@dataclass(frozen=True)
class Volume:
    """A prepared image.

    Attributes:
        name: of the image.
        image: (channels, depth, height, width).
        spacing: mm per voxel and axis.
    """

    name: str
    image: NDArray
    spacing: tuple[float, ...]

    @property
    def extent(self) -> NDArray:
        """mm from the first to the last voxel of each axis."""
        return (np.array(self.image.shape[1:]) - 1) * self.spacing

    @property
    def grey(self) -> NDArray:
        """The mean of the channels, float32."""
        return self.image.mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class Match:
    """Points found in the key volume.

    Attributes:
        points: (points, 3) in mm.
        score: (points,), larger is better; what it measures is the matcher's own.
        valid: (points,), whether to trust each.
    """

    points: NDArray
    score: NDArray
    valid: NDArray


class AnatomicalMatcher(ABC):
    """Base of the matchers: ``prepare`` each volume once, then ``match`` pairs of what it gives."""

    @abstractmethod
    def prepare(self, volume: Volume) -> dict[str, Any]:
        """What the matcher keeps of a volume: arrays and strings, in dictionaries of each other or not."""

    @abstractmethod
    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        """Find points of the query volume in the key volume.

        Args:
            query, key: of ``prepare``.
            points: (points, 3) in mm.
        """


class AffineMapMatcher(AnatomicalMatcher):
    """Base of the matchers whose answer for a pair of volumes is one affine map, which is computed once.

    What ``prepare`` gives has entries ``name`` and ``extent``.

    Attributes:
        folder: where maps of pairs are kept beyond this process, if set.
    """

    folder: Path | None = None

    def __init__(self) -> None:
        self._maps: dict[tuple[str, str], tuple[NDArray, float]] = {}

    @abstractmethod
    def affine_map(self, query: dict[str, Any], key: dict[str, Any]) -> tuple[NDArray, float]:
        """The 4x4 matrix in mm from the query into the key volume, and how well it fits."""

    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        matrix, score = self._known_map(query, key)
        found = apply_affine(matrix, points)
        return Match(found, np.full(len(points), score), inside(found, key["extent"]))

    def _known_map(self, query: dict[str, Any], key: dict[str, Any]) -> tuple[NDArray, float]:
        pair = str(query["name"]), str(key["name"])
        if pair not in self._maps:
            file = self.folder and self.folder / f"{pair[0]}__{pair[1]}.npy"
            if file and file.is_file():
                kept = np.load(file, allow_pickle=False)
                self._maps[pair] = kept[:4], float(kept[4, 0])
            else:
                matrix, score = self._maps[pair] = self.affine_map(query, key)
                if file:
                    write_array(np.vstack([matrix, np.full((1, 4), score)]), file)
        return self._maps[pair]


def write_array(array: NDArray | dict[str, NDArray], file: Path) -> None:
    """Write one array or several, whole or not at all, also where several processes write the same."""
    with replacing(file, is_shared=True) as partial, open(partial, "wb") as stream:
        np.savez(stream, **array) if isinstance(array, dict) else np.save(stream, array)


def inside(points: NDArray, extent: NDArray) -> NDArray:
    """Which points lie in a volume's field of view, (points,)."""
    return ((points >= 0) & (points <= np.asarray(extent))).all(axis=1)


def apply_affine(matrix: NDArray, points: NDArray) -> NDArray:
    """Map points, (points, 3), with a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def fit_affine(source: NDArray, target: NDArray) -> NDArray:
    """The 4x4 matrix that maps ``source`` to ``target``, both (points, 3), with the smallest squared error."""
    homogeneous = np.c_[source, np.ones(len(source))]
    solution, *_ = np.linalg.lstsq(homogeneous, target, rcond=None)
    return np.vstack([solution.T, [0, 0, 0, 1]])


def random_points(extent: Sequence[float], number: int, rng: np.random.Generator, margin: float = 0.1) -> NDArray:
    """Points of a volume, (number, 3), that stay off its border by a part of its extent."""
    return rng.uniform(margin, 1 - margin, (number, 3)) * np.asarray(extent)
