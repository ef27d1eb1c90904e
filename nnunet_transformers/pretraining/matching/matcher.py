"""Interface of the anatomical matchers, which find a point of one subject in another.

Points are in mm from the first voxel of a prepared image, in the order of its axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..._atomic import replacing

# mm per voxel: those at which SAM embeds volumes, and fine enough for a registration
SPACING = (2.0, 2.0, 2.0)
# score of a map that no registration has found, whose points are invalid
FAILED = float("-inf")


@dataclass(frozen=True)
class Volume:
    """A prepared image.

    Attributes:
        name: image name.
        image: (channels, depth, height, width).
        spacing: mm per voxel and axis.
    """

    name: str
    image: NDArray
    spacing: tuple[float, ...]

    @property
    def extent(self) -> NDArray:
        """Distance in mm from the first to the last voxel of each axis."""
        return (np.array(self.image.shape[1:]) - 1) * self.spacing

    @property
    def grey(self) -> NDArray:
        """Mean over the channels, float32."""
        return self.image.mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class Match:
    """Points found in the key volume.

    Attributes:
        points: (points, 3) in mm.
        score: (points,), larger for better matches; the scale depends on the matcher.
        valid: boolean (points,), true for reliable matches.
    """

    points: NDArray
    score: NDArray
    valid: NDArray


class AnatomicalMatcher(ABC):
    """Base of the matchers: ``prepare`` each volume once, then ``match`` pairs of prepared volumes.

    Attributes:
        spacing: mm per voxel and axis of the volumes that it is given where they are finer.
        version: of the features and maps, to be raised when those in a cache are no longer what it computes.
    """

    spacing: tuple[float, ...] = SPACING
    version: ClassVar[int] = 1

    @abstractmethod
    def prepare(self, volume: Volume) -> dict[str, Any]:
        """Compute the features of a volume that ``match`` needs: arrays and strings in (nested) dictionaries."""

    @abstractmethod
    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        """Find points of the query volume in the key volume.

        Args:
            query, key: results of ``prepare``, possibly read from a cache of arrays.
            points: (points, 3) in mm.
        """


class AffineMapMatcher(AnatomicalMatcher):
    """Base of the matchers that compute one affine map per pair of volumes, which can be kept.

    Attributes:
        cycle_error: largest valid distance in mm between a point and its match mapped back by the map of the other
            direction, which is computed by itself; None for no such gate.
    """

    cycle_error: float | None = None
    version: ClassVar[int] = 2

    @abstractmethod
    def affine_map(self, query: dict[str, Any], key: dict[str, Any]) -> tuple[NDArray, float]:
        """Return the 4x4 matrix in mm from the query into the key volume, and a score of its fit or ``FAILED``."""

    def match(self, query: dict[str, Any], key: dict[str, Any], points: NDArray) -> Match:
        back = None if self.cycle_error is None else self.affine_map(key, query)[0]
        return self.mapped(*self.affine_map(query, key), points, key["extent"], back)

    def mapped(
        self, matrix: NDArray, score: float, points: NDArray, extent: NDArray, back: NDArray | None = None
    ) -> Match:
        """Map points, (points, 3) in mm, into a key volume of ``extent``.

        Those inside of it are valid, if the map was found and the matrix ``back`` takes them to within ``cycle_error``
        of where they were.
        """
        found = apply_affine(matrix, points)
        valid = inside(found, extent) & (score > FAILED)
        if back is not None:
            valid &= np.linalg.norm(apply_affine(back, found) - points, axis=1) <= self.cycle_error
        return Match(found, np.full(len(points), score), valid)


def write_array(array: NDArray | dict[str, NDArray], file: Path) -> None:
    """Write an array (npy) or arrays by name (npz) atomically, even if several processes write the same file."""
    with replacing(file) as partial, open(partial, "wb") as stream:
        if isinstance(array, dict):
            np.savez(stream, **array)  # type: ignore[arg-type]  # no array is named allow_pickle
        else:
            np.save(stream, array)


def inside(points: NDArray, extent: NDArray) -> NDArray:
    """Return which points, (points, 3) in mm, lie in a volume of ``extent``: boolean (points,)."""
    return np.asarray(((points >= 0) & (points <= np.asarray(extent))).all(axis=1))


def apply_affine(matrix: NDArray, points: NDArray) -> NDArray:
    """Map points, (points, 3), by a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def fit_affine(source: NDArray, target: NDArray) -> NDArray:
    """Fit the 4x4 matrix that maps ``source`` to ``target``, both (points, 3), by least squares.

    Points in a plane say nothing of the direction across it; there the map neither stretches nor shears.
    """
    middle = source.mean(axis=0)
    # of the solutions lstsq returns the smallest, here of the displacements
    solution, *_ = np.linalg.lstsq(np.c_[source - middle, np.ones(len(source))], target - source, rcond=None)
    matrix = np.eye(4)
    matrix[:3, :3] += solution[:3].T
    matrix[:3, 3] = solution[3] - solution[:3].T @ middle
    return matrix


def random_points(extent: Sequence[float], number: int, rng: np.random.Generator, margin: float = 0.1) -> NDArray:
    """Draw points of a volume, (number, 3) in mm, at least a share ``margin`` of its extent away from its border."""
    return rng.uniform(margin, 1 - margin, (number, 3)) * np.asarray(extent)
