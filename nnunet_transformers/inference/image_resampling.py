"""nnU-Net's resampling of images in bounded memory, with its values.

``resample_data_or_seg_to_shape`` has scikit-image resize the image in float64, by splines of third order: the image, a
padded copy of it and the spline's coefficients are in memory together, 25 bytes per voxel. The coefficients result from
a recursive filter along one axis after the other. Along the first, whole columns are needed, but any few of them at a
time; afterwards a plane of the result depends on the planes of coefficients next to it. So the coefficients are
computed for some planes at a time, the first filter anew for each group of them, from the image in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import floor, prod
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, spline_filter1d
from skimage.transform import resize

from ..export.resampling import known_arguments

# coefficients of at most so many bytes are computed at once, others in so many groups of planes; reading an image takes
# more than a group, and each group takes the first filter's time
AT_ONCE, GROUPS = 2**28, 4
# voxels by which SciPy extends an image at each side, by its edge, before it filters
MARGIN = 12
# rows whose columns are filtered at a time
ROWS = 4

Resampling = Callable[..., Any]


def coefficient_bytes(shape: Sequence[int]) -> int:
    """Return the bytes of the coefficients that are in memory at a time, by an image's voxels per axis."""
    return _all_coefficient_bytes(shape) // _groups(shape)


def _all_coefficient_bytes(shape: Sequence[int]) -> int:
    return 8 * prod(size + 2 * MARGIN for size in shape)


def _groups(shape: Sequence[int]) -> int:
    return 1 if _all_coefficient_bytes(shape) <= AT_ONCE else GROUPS


def in_bounded_memory(function: Resampling) -> Resampling:
    """Return a function with the values and arguments of a plan's ``resampling_fn_data`` that needs less memory.

    Values are equal to the last bit where the compiler of SciPy rounds each operation, as on x86-64. Other functions
    than nnU-Net's default are returned as they are.

    Args:
        function: nnU-Net's resampling of images, a ``partial``.
    """
    given = known_arguments(function)
    return function if given is None or given["is_seg"] else partial(_resample, function, given)


def _resample(
    function: Resampling,
    given: dict[str, Any],
    data: NDArray[Any],
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> NDArray[Any]:
    """Resample an image, (channels, *spatial), as ``function`` with the arguments ``given``."""
    shape, new_shape = data.shape[1:], tuple(map(int, new_shape))
    separates, axis = determine_do_sep_z_and_axis(
        given["force_separate_z"], current_spacing, new_spacing, given["separate_z_anisotropy_threshold"]
    )
    if shape == new_shape:
        return data
    interpolates_slices = separates and given["order_z"] > 0 and shape[axis] != new_shape[axis]
    if data.dtype != np.float32 or interpolates_slices:
        result: NDArray[Any] = function(data, new_shape, current_spacing, new_spacing)
        return result
    result = np.empty((len(data), *new_shape), np.float32)
    for image, target in zip(data, result, strict=True):
        if separates:
            _resample_slices(np.moveaxis(image, axis, 0), np.moveaxis(target, axis, 0), given["order"])
        elif given["order"] > 1:
            _resample_by_splines(image, target, given["order"])
        else:
            target[...] = _resized(image, new_shape, given["order"])
    return result


def _resized(image: NDArray[np.float32], shape: Sequence[int], order: int) -> NDArray[np.float32]:
    """Resize as nnU-Net does, which converts to float64 before and to float32 after it.

    SciPy computes in float64 for either type, and clipping to values of float32 does not depend on when it is rounded.
    """
    return np.asarray(resize(image, shape, order, mode="edge", anti_aliasing=False))


def _resample_slices(image: NDArray[np.float32], target: NDArray[np.float32], order: int) -> None:
    """Resize the slices of an anisotropic image and repeat the nearest one along the first axis."""
    old, new = len(image), len(target)
    nearest = map_coordinates(np.arange(old), [old / new * (np.arange(new) + 0.5) - 0.5], order=0, mode="nearest")

    def resize_slice(number: int) -> None:
        target[nearest == number] = _resized(image[number], target.shape[1:], order)

    _in_threads(resize_slice, np.unique(nearest))


def _resample_by_splines(image: NDArray[np.float32], target: NDArray[np.float32], order: int) -> None:
    """Resample by splines of an order of at least 2, group by group of planes of the result."""
    # positions of the result's voxels in the extended image
    depths, *others = (
        (np.arange(new) + 0.5) * (old / new) - 0.5 + MARGIN for old, new in zip(image.shape, target.shape, strict=True)
    )
    for group in np.array_split(range(len(target)), min(_groups(image.shape), len(target))):
        here = slice(group[0], group[-1] + 1)
        first, last = floor(depths[here][0]) - order // 2, floor(depths[here][-1]) + order // 2 + 2
        _interpolate(_coefficients(image, first, last, order), [depths[here] - first, *others], target[here], order)
    lowest, highest = (extreme.reduce(image, axis=None) for extreme in (np.fmin, np.fmax))
    np.clip(target, lowest, highest, out=target)


def _interpolate(
    coefficients: NDArray[np.float64], where: Sequence[NDArray[np.float64]], target: NDArray[np.float32], order: int
) -> None:
    """Compute the spline's values at positions along each axis, one plane at a time."""
    depths, *others = where

    def interpolate(plane: int) -> None:
        positions = np.stack(np.meshgrid(depths[plane], *others, indexing="ij"))[:, 0]
        map_coordinates(coefficients, positions, target[plane], order, mode="nearest", prefilter=False)

    _in_threads(interpolate, range(len(target)))


def _coefficients(image: NDArray[np.float32], first: int, last: int, order: int) -> NDArray[np.float64]:
    """Return the planes from ``first`` to ``last`` of the extended image's spline coefficients."""
    inside = slice(MARGIN, -MARGIN)
    result = np.empty((last - first, *(size + 2 * MARGIN for size in image.shape[1:])))
    interior = result[:, inside, inside]

    def filter_columns(row: int) -> None:
        block = np.empty((len(image) + 2 * MARGIN, *image[0, row : row + ROWS].shape))
        block[inside] = image[:, row : row + ROWS]
        block[:MARGIN], block[-MARGIN:] = block[MARGIN], block[-MARGIN - 1]
        spline_filter1d(block, order, axis=0, output=block, mode="nearest")
        interior[:, row : row + ROWS] = block[first:last]

    def filter_plane(number: int) -> None:
        plane = result[number]
        # what extends the image has equal columns, so equal coefficients so far
        plane[:, :MARGIN], plane[:, -MARGIN:] = plane[:, [MARGIN]], plane[:, [-MARGIN - 1]]
        plane[:MARGIN], plane[-MARGIN:] = plane[MARGIN], plane[-MARGIN - 1]
        for axis in range(2):
            spline_filter1d(plane, order, axis=axis, output=plane, mode="nearest")

    _in_threads(filter_columns, range(0, image.shape[1], ROWS))
    _in_threads(filter_plane, range(len(result)))
    return result


def _in_threads(work: Callable[[int], None], parts: Iterable[int]) -> None:
    """Do work for each part with PyTorch's number of threads, but no more than nnU-Net takes; SciPy takes only one."""
    with ThreadPoolExecutor(min(default_num_processes, torch.get_num_threads())) as executor:
        list(executor.map(work, parts))
