"""Random augmentation of a classifier's training crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

from ..pretraining.data.transforms import flip, intensity_transforms


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation.

    Attributes:
        intensity: noise, blur, brightness, contrast and gamma, see ``intensity_transforms``.
        flips: axes, counted from 0, to mirror with probability 1/2; none by default, since a body is not symmetric.
        rotation: largest angle in degrees about each axis, applied with probability 1/5, as in nnU-Net.
        zoom: smallest and largest magnification, applied with the same probability.
        elastic: largest displacement in voxels of a field smoothed over a tenth of the patch, as often.
        low_resolution: sample at 0.5 to 1 of the resolution and interpolate, with probability 1/4, as in nnU-Net.

    Raises:
        ValueError: if ``zoom`` is not a range of positive numbers.
    """

    intensity: bool = True
    flips: tuple[int, ...] = ()
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    elastic: float = 0.0
    low_resolution: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom must be two numbers above 0, the smaller first, got {self.zoom}")

    def transform(self, patch_size: Sequence[int]) -> BasicTransform:
        """Build rotation, zoom and intensity changes with batchgeneratorsv2.

        Raises:
            ValueError: if ``flips`` names an axis that the patch does not have.
        """
        if any(axis not in range(len(patch_size)) for axis in self.flips):
            raise ValueError(f"flips {self.flips} must name axes of the patch, 0 to {len(patch_size) - 1}")
        angle = np.deg2rad(self.rotation)
        spatial = SpatialTransform(
            tuple(patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=0.2 if angle else 0,
            rotation=(-angle, angle),
            p_scaling=0.2 if self.zoom != (1.0, 1.0) else 0,
            # scales the sampling grid: a smaller grid magnifies
            scaling=(1 / self.zoom[1], 1 / self.zoom[0]),
            p_synchronize_scaling_across_axes=1,
            p_elastic_deform=0.2 if self.elastic else 0,
            elastic_deform_scale=0.1,
            elastic_deform_magnitude=(0, self.elastic),
            padding_mode_image="border",
        )
        coarse = SimulateLowResolutionTransform((0.5, 1), False, True, None, p_per_channel=0.5)
        return ComposeTransforms(
            [spatial] * bool(angle or self.zoom != (1.0, 1.0) or self.elastic)
            + [intensity_transforms()] * self.intensity
            + [RandomTransform(coarse, 0.25)] * self.low_resolution
        )

    def apply(self, crop: Tensor, transform: BasicTransform) -> Tensor:
        """Augment a crop.

        Args:
            crop: (channels, *patch_size).
            transform: result of ``transform``.

        Returns:
            (channels, *patch_size).
        """
        return transform(image=flip(crop, 0.5, [axis + 1 for axis in self.flips]))["image"]
