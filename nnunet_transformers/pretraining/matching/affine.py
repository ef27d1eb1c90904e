"""Affine registration by mutual information."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import zoom

from .matcher import FAILED, AffineMapMatcher, Volume

# voxels along the longest axis at the finest resolution
LONGEST = 64
# of the points at which volumes are compared; SimpleITK takes 0 for the time of day
SAMPLING_SEED = 1


class AffineMatcher(AffineMapMatcher):
    """Match by affine registration with SimpleITK (Mattes mutual information, three resolutions).

    Args:
        longest: voxels along the longest axis at the finest resolution.
        iterations: maximum iterations of the optimiser at each resolution.
    """

    def __init__(self, longest: int = LONGEST, iterations: int = 60) -> None:
        self.longest, self.iterations = longest, iterations

    def prepare(self, volume: Volume) -> dict[str, Any]:
        return small_image(volume, self.longest)

    def affine_map(self, query: dict[str, Any], key: dict[str, Any]) -> tuple[NDArray, float]:
        return register(query, key, np.eye(4), self.iterations, centre=True)


def small_image(volume: Volume, longest: int) -> dict[str, Any]:
    """Downsample a volume for a registration of about a second, on each axis as far as its voxels are finer.

    Thick slices are all kept: the registration needs four of them, and fails with fewer.

    Args:
        volume: prepared image.
        longest: voxels along the longest axis.

    Returns:
        ``name``; ``image``, the mean over the channels (depth, height, width); ``spacing`` and ``extent`` in mm, (3,).
    """
    grey = volume.grey
    extent = volume.extent
    step = max(np.max(extent), 1e-6) / max(longest - 1, 1)
    factors = np.minimum(1.0, (np.round(extent / step) + 1) / grey.shape)
    small = zoom(grey, factors, order=1) if factors.min() < 1 else grey
    steps = np.maximum(np.array(small.shape) - 1, 1)
    return {"name": volume.name, "image": small.astype(np.float32), "spacing": extent / steps, "extent": extent}


def register(
    query: dict[str, Any], key: dict[str, Any], start: NDArray, iterations: int, centre: bool = False
) -> tuple[NDArray, float]:
    """Find the affine map from the query volume into the key volume that maximises mutual information.

    Args:
        query, key: results of ``small_image``.
        start: 4x4 matrix in mm to start from.
        iterations: maximum iterations of the optimiser at each resolution.
        centre: start from aligned centres of the volumes instead.

    Returns:
        the 4x4 matrix in mm, with axes in the order of the volumes, and the mutual information; ``start`` and
        ``FAILED`` if the registration fails.
    """
    fixed, moving = (_itk(side) for side in (query, key))
    transform = sitk.AffineTransform(3)
    if centre:
        initial = sitk.CenteredTransformInitializer(
            fixed, moving, transform, sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        transform = sitk.AffineTransform(initial)
    else:
        transform.SetCenter((query["extent"][::-1] / 2).tolist())
        # SimpleITK reverses the axes; x' = A (x - c) + c + t
        a, offset = start[:3, :3][::-1, ::-1], start[:3, 3][::-1]
        middle = np.array(transform.GetCenter())
        transform.SetMatrix(a.flatten().tolist())
        transform.SetTranslation((a @ middle + offset - middle).tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.25, SAMPLING_SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, iterations, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    levels = [f for f in (4, 2, 1) if min(query["image"].shape) // f >= 8] or [1]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([float(f - 1) for f in levels])
    method.SetInitialTransform(transform, inPlace=True)
    # sums of one thread are the same in every run; the metric takes the number for all filters, not the method's
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # no overlap left, or fewer than four slices
        return start, FAILED
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    a = np.array(transform.GetMatrix()).reshape(3, 3)
    middle, translation = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = a[::-1, ::-1]
    matrix[:3, 3] = (middle + translation - a @ middle)[::-1]
    return matrix, -method.GetMetricValue()


def _itk(side: dict[str, Any]) -> sitk.Image:
    image = sitk.GetImageFromArray(side["image"])
    image.SetSpacing([max(float(s), 1e-6) for s in side["spacing"][::-1]])
    return image
