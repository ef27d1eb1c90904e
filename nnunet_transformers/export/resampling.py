"""nnU-Net's resampling of logits as one interpolation per axis, so that any slab of planes can be computed alone.

``resample_data_or_seg_to_shape`` calls scikit-image's ``resize``, and for anisotropic images ``resize`` on each slice
and SciPy's ``map_coordinates`` across them. With order 0 or 1 both are separable: along each axis, a voxel of the
result is a weighted sum of at most two voxels. Indices and weights are read from what these functions make of unit
vectors, so grid, edges and rounding are theirs. Splines of higher order depend on whole axes and are left to nnU-Net's
function.

A result of 512x512x300 voxels and 15 classes has 1.2e9 values: 2.4e9 multiply-adds along the last axis computed, at
most as many along the others together, and 16 bytes read and 8 written for each, plane by plane in the processor's
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from torch import Tensor

HIGHEST_ORDER = 1


@dataclass(frozen=True)
class Taps:
    """Interpolation along an axis: ``result[i] = sum(weights[t, i] * values[indices[t, i]] for t in range(taps))``.

    Attributes:
        indices: (taps, size of the result), int64.
        weights: (taps, size of the result), float64; those of an output index sum to 1.
    """

    indices: Tensor
    weights: Tensor

    @staticmethod
    def of(matrix: NDArray[np.float64]) -> Taps:
        """Return the taps of an interpolation by its matrix, (size of the result, size before)."""
        count = max(1, int((matrix != 0).sum(1).max()))
        # a stable order keeps neighbours in the order of the axis; absent taps repeat the first with weight 0
        indices = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
        weights = np.take_along_axis(matrix, indices, 1)
        indices = np.where(weights == 0, indices[:, :1], indices)
        return Taps(torch.from_numpy(indices.T.copy()), torch.from_numpy(weights.T.copy()))

    def __len__(self) -> int:
        return self.indices.shape[1]

    def to(self, device: torch.device) -> Taps:
        """Return the taps on a device."""
        return Taps(self.indices.to(device), self.weights.to(device))

    def between(self, first: int, last: int, offset: int = 0) -> Taps:
        """Return the taps of a range of the result, for values whose first ``offset`` are left out."""
        return Taps(self.indices[:, first:last] - offset, self.weights[:, first:last])

    def __call__(self, values: Tensor, axis: int) -> Tensor:
        """Interpolate float64 values along an axis."""
        shape = [1] * values.ndim
        shape[axis] = -1
        result: Tensor | None = None
        for indices, weights in zip(self.indices, self.weights, strict=True):
            gathered = values.index_select(axis, indices)
            if result is None:
                result = gathered.mul_(weights.view(shape))
            else:
                result.addcmul_(gathered, weights.view(shape))
        assert result is not None
        return result


def _resize_taps(old: int, new: int, order: int) -> Taps:
    """Return the taps of scikit-image's ``resize`` as nnU-Net calls it."""
    return Taps.of(resize(np.eye(old), (new, old), order, mode="edge", anti_aliasing=False, clip=False))


def _map_taps(old: int, new: int, order: int) -> Taps:
    """Return the taps of ``map_coordinates`` as nnU-Net calls it across slices."""
    rows, columns = np.mgrid[:new, :old]
    coordinates = np.array([float(old) / new * (rows + 0.5) - 0.5, columns])
    return Taps.of(map_coordinates(np.eye(old), coordinates, order=order, mode="nearest"))


@dataclass(frozen=True)
class SeparableResampling:
    """Resampling of logits from one size to another.

    Attributes:
        shape: voxels per axis before.
        new_shape: voxels per axis of the result.
        axes: interpolation along each axis; None along one whose size stays.
    """

    shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    axes: tuple[Taps | None, Taps | None, Taps | None]

    @property
    def is_identity(self) -> bool:
        """Whether nothing is interpolated."""
        return all(taps is None for taps in self.axes)

    def to(self, device: torch.device) -> SeparableResampling:
        """Return the resampling with its taps on a device."""
        first, second, third = (None if taps is None else taps.to(device) for taps in self.axes)
        return SeparableResampling(self.shape, self.new_shape, (first, second, third))

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of planes along the first axis from which the planes ``first`` to ``last`` result."""
        taps = self.axes[0]
        if taps is None:
            return first, last
        indices = taps.indices[:, first:last]
        return int(indices.min()), int(indices.max()) + 1

    def planes(self, values: Tensor, first: int, last: int, offset: int) -> Tensor:
        """Compute planes ``first`` to ``last`` of the result for one class.

        Args:
            values: (planes, rows, columns) of the class before, in any type, on the taps' device.
            first, last: range of planes of the result.
            offset: index of the first plane in ``values``.

        Returns:
            (last - first, *new_shape[1:]), float64.
        """
        start, stop = self.needed(first, last)
        result = values[start - offset : stop - offset].double()
        planes, rows, columns = self.axes
        if planes is not None:
            result = planes.between(first, last, start)(result, 0)
        if columns is not None:
            # gathering rows is several times as fast as gathering single values
            result = columns(result.transpose(1, 2).contiguous(), 1).transpose(1, 2).contiguous()
        return result if rows is None else rows(result, 1)


def separable_resampling(
    function: Callable[..., Any],
    shape: Sequence[int],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> SeparableResampling | None:
    """Return what a plan's resampling function does between two sizes; None if it is not separable or not nnU-Net's.

    Args:
        function: ``resampling_fn_probabilities`` of a configuration, a ``partial``.
        shape, new_shape: voxels per axis before and of the result.
        current_spacing, new_spacing: mm per voxel before and of the result.
    """
    given = known_arguments(function)
    if given is None or not is_separable(function):
        return None
    shape, new_shape = tuple(map(int, shape)), tuple(map(int, new_shape))
    if shape == new_shape:
        return SeparableResampling(shape, new_shape, (None, None, None))
    separates, axis = determine_do_sep_z_and_axis(
        given["force_separate_z"], current_spacing, new_spacing, given["separate_z_anisotropy_threshold"]
    )
    taps: list[Taps | None] = []
    for number, (old, new) in enumerate(zip(shape, new_shape, strict=True)):
        if old == new:
            taps.append(None)
        elif separates and number == axis:
            taps.append(_map_taps(old, new, given["order_z"]))
        else:
            taps.append(_resize_taps(old, new, given["order"]))
    return SeparableResampling(shape, new_shape, (taps[0], taps[1], taps[2]))


def is_separable(function: Callable[..., Any]) -> bool:
    """Tell whether a plan's resampling function is nnU-Net's default without splines."""
    given = known_arguments(function)
    return given is not None and not given["is_seg"] and max(given["order"], given["order_z"]) <= HIGHEST_ORDER


def known_arguments(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Return the arguments of nnU-Net's default resampling that a plan's function sets; None for another function."""
    if not isinstance(function, partial) or function.func is not resample_data_or_seg_to_shape or function.args:
        return None
    defaults = {name: p.default for name, p in signature(resample_data_or_seg_to_shape).parameters.items()}
    return {**defaults, **function.keywords}
