"""Gaussian blur of images that have few voxels along an axis, where batchgeneratorsv2's kernels do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def fitting_sigma(low: float, high: float) -> partial[float]:
    """Return a ``blur_sigma`` of ``GaussianBlurTransform``: a uniform number, limited to what fits the axis.

    Args:
        low, high: range of the draw, in voxels.
    """
    return partial(_draw, low, high)


def _draw(low: float, high: float, shape: int | Sequence[int], dim: int | None = None) -> float:
    """Draw a standard deviation.

    Args:
        low, high: range of the draw, in voxels.
        shape: voxels of the axis, or the image's shape (channels, *axes).
        dim: axis of the image's shape; None for all of them.
    """
    voxels = shape if isinstance(shape, int) else min(shape[1:]) if dim is None else shape[dim]
    # kernels have 6 sigma + 0.5 voxels, rounded to an odd number; half of them are reflected at the ends of the axis
    return min(float(np.random.uniform(low, high)), (voxels - 0.3) / 3)


def fit_blur(transform: BasicTransform) -> None:
    """Limit the blur among transforms, in place, whose range was given as two numbers."""
    if isinstance(transform, ComposeTransforms):
        for part in transform.transforms:
            fit_blur(part)
    elif isinstance(transform, RandomTransform):
        fit_blur(transform.transform)
    elif isinstance(transform, GaussianBlurTransform) and isinstance(transform.blur_sigma, (tuple, list)):
        transform.blur_sigma = fitting_sigma(*transform.blur_sigma)
