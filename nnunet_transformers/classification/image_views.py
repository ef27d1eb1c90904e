"""What of an image a classifier sees: crops in training, tiles afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.preprocessing.normalization.default_normalization_schemes import NoNormalization
from torch import Tensor

from ..pretraining.data import PreparedImages, tile_starts
from ..pretraining.data.transforms import fit_canvas, flip, intensity_transforms, resize


@dataclass(frozen=True)
class ImageViews:
    """How prepared images become a network's input.

    A smaller image is filled up with its smallest value. A 2D network sees slices of a volume.

    Attributes:
        patch_size: voxels per axis that the network takes.
        input_channels: that it takes; an image of one channel is repeated.
        canvas: size that the whole image, or slice, is brought to before parts of the patch are taken; None leaves it
            as it was prepared.
        keep_aspect: fit the image into the canvas and fill that up, rather than stretch it.
        intensity_range: values that become 0 and 1, those beyond clipped, such as a window of HU; for images that were
            prepared without normalisation. None leaves them as they were prepared.
        tiles: after training see all of an image, in tiles; False takes the part in its centre.
    """

    patch_size: tuple[int, ...]
    input_channels: int = 1
    canvas: tuple[int, ...] | None = None
    keep_aspect: bool = True
    intensity_range: tuple[float, float] | None = None
    tiles: bool = True

    def __post_init__(self) -> None:
        sizes = self.canvas or self.patch_size
        if len(sizes) != len(self.patch_size) or any(c < p for c, p in zip(sizes, self.patch_size, strict=True)):
            raise ValueError(f"canvas {sizes} must have the axes of the patch {self.patch_size} and be no smaller")
        if self.intensity_range is not None and not self.intensity_range[0] < self.intensity_range[1]:
            raise ValueError(f"intensity_range must be two rising numbers, got {self.intensity_range}")

    def check(self, index: Mapping[str, Any]) -> None:
        """Check that prepared images can be seen.

        Args:
            index: of the prepared folder.

        Raises:
            ValueError: if they have other channels, or their intensities are not as ``intensity_range`` wants them.
        """
        channels = len(index["channels"])
        if channels not in (1, self.input_channels):
            raise ValueError(f"the prepared images have {channels} channels, the network takes {self.input_channels}")
        if self.intensity_range is not None and set(index["normalization"]) != {NoNormalization.__name__}:
            raise ValueError(
                f"intensity_range {self.intensity_range} is of images as they are, but these were prepared with "
                f"{index['normalization'][0]}: prepare them with --normalization nonorm, or set intensity_range to null"
            )

    def crop(self, images: PreparedImages, name: str, rng: np.random.Generator) -> Tensor:
        """A random part of an image, (input_channels, *patch_size)."""
        if self.canvas is None:
            return self._values(images.crop(self.patch_size, rng, name))
        slices = images.shapes[name][1]
        whole = self._on_canvas(images, name, int(rng.integers(slices)) if len(self.patch_size) == 2 else 0)
        room = [c - p for c, p in zip(self.canvas, self.patch_size, strict=True)]
        return self._values(self._part(whole, [int(rng.integers(r + 1)) for r in room]))

    def parts(self, images: PreparedImages, name: str) -> Iterator[Tensor]:
        """What is seen of an image after training, each (input_channels, *patch_size)."""
        shape = images.shapes[name][1:]
        wanted = (1,) * (3 - len(self.patch_size)) + self.patch_size
        if self.canvas is not None:
            for number in range(shape[0]) if len(self.patch_size) == 2 else (0,):
                whole = self._on_canvas(images, name, number)
                size = (1,) * (3 - len(self.canvas)) + self.canvas
                for start in tile_starts(size, self.patch_size) if self.tiles else [_centre(size, wanted)]:
                    yield self._values(self._part(whole, start[-len(self.patch_size) :]))
            return
        for start in tile_starts(shape, self.patch_size) if self.tiles else [_centre(shape, wanted)]:
            yield self._values(images.read(name, start, self.patch_size))

    def _on_canvas(self, images: PreparedImages, name: str, number: int) -> Tensor:
        shape = images.shapes[name][1:]
        if len(self.canvas) == 2:
            image = images.read(name, (number, 0, 0), shape[1:])
        else:
            image = images.read(name, (0, 0, 0), shape)
        return fit_canvas(image, self.canvas, float(image.min())) if self.keep_aspect else resize(image, self.canvas)

    def _part(self, whole: Tensor, start: Sequence[int]) -> Tensor:
        return whole[(slice(None), *(slice(a, a + p) for a, p in zip(start, self.patch_size, strict=True)))]

    def _values(self, part: Tensor) -> Tensor:
        if self.intensity_range is not None:
            low, high = self.intensity_range
            part = ((part - low) / (high - low)).clamp(0, 1)
        return part.expand(self.input_channels, *part.shape[1:]).contiguous()


def _centre(shape: Sequence[int], size: Sequence[int]) -> list[int]:
    return [max(0, n - s) // 2 for n, s in zip(shape, size, strict=True)]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a crop in training.

    Attributes:
        intensity: noise, blur, brightness, contrast and gamma, see ``intensity_transforms``.
        flips: axes to mirror with probability 1/2, from 0; none by default, since a body is not symmetric.
        rotation: largest angle in degrees about each axis, with probability 1/5, as nnU-Net.
        zoom: least and most magnification, with the same probability.
    """

    intensity: bool = True
    flips: tuple[int, ...] = ()
    rotation: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"zoom must be two numbers above 0, the least first, got {self.zoom}")

    def transform(self, patch_size: Sequence[int]) -> BasicTransform:
        """Rotation, zoom and intensity, as batchgeneratorsv2 has them."""
        angle = np.deg2rad(self.rotation)
        spatial = SpatialTransform(
            tuple(patch_size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_rotation=0.2 if angle else 0,
            rotation=(-angle, angle),
            p_scaling=0.2 if self.zoom != (1.0, 1.0) else 0,
            # of the grid that is looked up, so that large numbers show more
            scaling=(1 / self.zoom[1], 1 / self.zoom[0]),
            p_synchronize_scaling_across_axes=1,
            padding_mode_image="border",
        )
        return ComposeTransforms(
            [spatial] * bool(angle or self.zoom != (1.0, 1.0)) + [intensity_transforms()] * self.intensity
        )

    def apply(self, crop: Tensor, transform: BasicTransform) -> Tensor:
        """A changed crop, (channels, *patch_size); ``transform`` is that of ``transform``."""
        if any(axis >= crop.dim() - 1 for axis in self.flips):
            raise ValueError(f"flips {self.flips} must name axes of the patch, 0 to {crop.dim() - 2}")
        return transform(image=flip(crop, 0.5, [axis + 1 for axis in self.flips]))["image"]
