"""Distances between the surfaces of two masks: HD95, ASSD, MASD and the normalised surface Dice.

Surfaces are sets of voxels. Most of those of a good prediction are on the reference's surface too, at distance 0; only
the others are looked up, in a k-d tree of the other surface. No distance transform is computed, whose time and memory
grow with the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

# a distance equal to the tolerance is within it, in spite of rounding
ROUNDING = 1e-9


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from every voxel of a surface to the nearest of the other.

    Attributes:
        to_reference: (voxels of the prediction's surface,), float64, in no order.
        to_prediction: (voxels of the reference's surface,), the same.
    """

    to_reference: NDArray
    to_prediction: NDArray

    def hausdorff(self, percentile: float = 95, pooled: bool = False) -> float:
        """Compute a percentile of the distances, in mm, interpolated linearly; 100 gives the Hausdorff distance.

        Args:
            percentile: between 0 and 100.
            pooled: take it of all distances together (medpy's ``hd95``) instead of the larger of the directed ones
                (Maier-Hein et al., "Metrics reloaded", Nature Methods 2024, supplement).
        """
        if pooled:
            return float(np.percentile(self._all, percentile))
        return float(max(np.percentile(d, percentile) for d in (self.to_reference, self.to_prediction)))

    @property
    def average(self) -> float:
        """ASSD in mm, the mean of all distances (Yeghiazaryan and Voiculescu, J. Medical Imaging 2018, section 2)."""
        return float(self._all.mean())

    @property
    def mean_average(self) -> float:
        """MASD in mm, the mean of the two directed means, which medpy calls ``assd``."""
        return float((self.to_reference.mean() + self.to_prediction.mean()) / 2)

    def surface_dice(self, tolerance: float) -> float:
        """Compute the share of both surfaces that is within a tolerance of the other (NSD).

        Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy", 2018,
        Methods. They weight surface elements by their area; here every surface voxel counts the same, as in MONAI.

        Args:
            tolerance: mm.
        """
        return float((self._all <= tolerance * (1 + ROUNDING)).mean())

    @property
    def _all(self) -> NDArray:
        return np.concatenate([self.to_reference, self.to_prediction])


def surface_distances(
    prediction: NDArray, reference: NDArray, spacing: Sequence[float], connectivity: int = 1
) -> SurfaceDistances:
    """Compute the distances between the surfaces of two masks, exactly, in float64.

    Args:
        prediction, reference: boolean, of the same shape, neither empty.
        spacing: mm, one number per axis.
        connectivity: of ``surface``.

    Raises:
        ValueError: if shapes and spacing do not fit, or a mask is empty.
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise ValueError(f"masks of {prediction.shape} and {reference.shape} voxels with {len(spacing)} spacings")
    surfaces = [surface(mask, connectivity) for mask in (prediction, reference)]
    ours, theirs = (np.flatnonzero(voxels) for voxels in surfaces)
    if not len(ours) or not len(theirs):
        raise ValueError("surface distances of an empty mask are undefined")

    def nearest(indices: NDArray, own: NDArray, other: NDArray) -> NDArray:
        apart = own[~np.take(other, own)]
        distances = np.zeros(len(own))
        if len(apart):
            # a balanced tree takes several times as long to build, and is searched no faster
            tree = cKDTree(_positions(indices, shape, spacing), balanced_tree=False, compact_nodes=False)
            distances[: len(apart)] = tree.query(_positions(apart, shape, spacing))[0]
        return distances

    shape = prediction.shape
    return SurfaceDistances(nearest(theirs, ours, surfaces[1]), nearest(ours, theirs, surfaces[0]))


def surface(mask: NDArray, connectivity: int = 1) -> NDArray:
    """Return the voxels of a mask with a neighbour outside; what is beyond the image's border is outside.

    Args:
        mask: boolean, of any number of axes.
        connectivity: neighbours share a face (1), a face or an edge (2), or a corner as well (3), as in SciPy's
            ``generate_binary_structure``.

    Returns:
        boolean, the shape of the mask.
    """
    connectivity = min(connectivity, mask.ndim)
    # A ball of radius k in the number of changed axes is the union of the squares and cubes along k axes each; erosion
    # by a cube is erosion along one axis after the other.
    inner = mask.copy()
    for axes in combinations(range(mask.ndim), connectivity):
        eroded = mask
        for axis in axes:
            eroded = _eroded_along(eroded, axis)
        inner &= eroded
    return mask & ~inner


def _eroded_along(mask: NDArray, axis: int) -> NDArray:
    eroded = mask.copy()
    source, target = np.moveaxis(mask, axis, 0), np.moveaxis(eroded, axis, 0)
    target[1:] &= source[:-1]
    target[:-1] &= source[1:]
    target[[0, -1]] = False
    return eroded


def _positions(indices: NDArray, shape: tuple[int, ...], spacing: Sequence[float]) -> NDArray:
    """Return (voxels, axes) in mm."""
    return np.stack(np.unravel_index(indices, shape), axis=1) * np.asarray(spacing, float)
