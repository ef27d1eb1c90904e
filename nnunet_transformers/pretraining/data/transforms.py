"""Transforms of views: rotation, cut-out, crop, resize, flip and intensity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..._blur import fitting_sigma


def rotations_of(patch_size: Sequence[int]) -> list[int]:
    """Return the in-plane quarter turns that keep a crop's shape: all four if it is square in-plane.

    >>> rotations_of((16, 32, 64))
    [0, 2]
    """
    return [0, 1, 2, 3] if patch_size[-1] == patch_size[-2] else [0, 2]


def rotate(image: Tensor, turns: int) -> Tensor:
    """Rotate an image, (channels, *size), in-plane by quarter turns."""
    return torch.rot90(image, turns, (-2, -1))


def cut_out(image: Tensor, boxes: tuple[int, int] = (1, 3), edge: Sequence[int] | None = None) -> Tensor:
    """Fill random boxes with uniform noise in the image's range (QT-UNet thesis, section 3.3.12).

    Args:
        image: (channels, *size); not modified.
        boxes: minimum and maximum number of boxes.
        edge: minimum and maximum edge of a box in voxels, at most the image's; by default a third to two thirds of the
            image, which at 96 voxels are the thesis's 32 to 64.

    Returns:
        a copy of the image with boxes of noise.
    """
    image = image.clone()
    low, high = image.min(), image.max()
    for _ in range(int(torch.randint(boxes[0], boxes[1] + 1, ()))):
        box = [slice(None)]
        for n in image.shape[1:]:
            shortest, longest = (n / 3, 2 * n / 3) if edge is None else edge
            length = min(n, max(1, round(uniform(shortest, longest))))
            box.append(_random_slice(length, n))
        part = image[tuple(box)]
        part.copy_(low + (high - low) * torch.rand_like(part))
    return image


def _random_slice(length: int, n: int) -> slice:
    """Draw ``length`` consecutive ones of ``n`` voxels."""
    start = int(torch.randint(n - length + 1, ()))
    return slice(start, start + length)


def uniform(low: float, high: float) -> float:
    """Draw a uniform number from torch's global generator."""
    return float(torch.empty(()).uniform_(low, high))


def random_resized_crop(image: Tensor, size: Sequence[int], scale: Sequence[tuple[float, float]]) -> Tensor:
    """Cut a random box out of an image and resize it.

    Args:
        image: (channels, *axes).
        size: size of the result.
        scale: minimum and maximum edge of the box for each axis, in units of ``size`` and at most the image's.

    Returns:
        (channels, *size).
    """
    box = [slice(None)]
    for n, s, (low, high) in zip(image.shape[1:], size, scale, strict=True):
        length = min(n, max(1, round(s * uniform(low, high))))
        box.append(_random_slice(length, n))
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(image[tuple(box)][None], size=tuple(size), mode=mode, align_corners=False)[0]


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image linearly, with antialiasing where it shrinks.

    Args:
        image: (channels, *axes), two or three axes.
        size: size of the result.

    Returns:
        (channels, *size).
    """

    def plane(image: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)

    if len(size) == 2:
        return plane(image[None], size)[0]
    # torch antialiases at most two axes; a second pass resizes the third axis beside one of unchanged size
    image = plane(image, size[1:])
    return plane(image.flatten(2)[None], (size[0], size[1] * size[2]))[0].unflatten(2, tuple(size[1:]))


def fit_canvas(image: Tensor, size: Sequence[int], fill: float = 0.0) -> Tensor:
    """Resize an image to fit into ``size``, keep its aspect ratio and pad around it.

    Args:
        image: (channels, *axes), two or three axes.
        size: size of the result.
        fill: padding value.

    Returns:
        (channels, *size).
    """
    scale = min(s / n for s, n in zip(size, image.shape[1:], strict=True))
    inner = [min(s, max(1, round(n * scale))) for s, n in zip(size, image.shape[1:], strict=True)]
    ends = [((s - n) // 2, s - n - (s - n) // 2) for s, n in zip(size, inner, strict=True)]
    pads = [end for axis in reversed(ends) for end in axis]
    return F.pad(resize(image, inner), pads, value=fill)


def flip(image: Tensor, p: float, axes: Sequence[int]) -> Tensor:
    """Mirror an image, (channels, *size), on each axis of ``axes`` with probability ``p``."""
    flipped = [axis for axis in axes if uniform(0, 1) < p]
    return image.flip(flipped) if flipped else image


def spatial_transforms(patch_size: Sequence[int]) -> tuple[BasicTransform, list[int]]:
    """Build rotation, scaling and mirroring with nnU-Net's parameters; in-plane where the voxels are anisotropic.

    Args:
        patch_size: voxels per axis of the result.

    Returns:
        transform of images, and size of the images that it takes, so that rotated corners have voxels.
    """
    patch_size = tuple(patch_size)
    in_plane = len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISO_THRESHOLD
    size = patch_size[1:] if in_plane else patch_size
    if len(size) == 3:
        angle = math.radians(30)
    else:
        angle = math.radians(15 if not in_plane and max(size) / min(size) > 1.5 else 180)
    spatial = SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-angle, angle),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )
    slices = [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if in_plane else [spatial]
    # nnU-Net's range of scales for the size to read, which is narrower than that of the transform
    taken = get_patch_size(patch_size, *[(-angle, angle)] * 3, (0.85, 1.25)).tolist()
    if in_plane:
        taken[0] = patch_size[0]
    return ComposeTransforms([*slices, MirrorTransform(tuple(range(len(patch_size))))]), taken


def intensity_transforms() -> BasicTransform:
    """Build noise, blur, brightness, contrast and gamma with nnU-Net's parameters."""

    def contrast() -> BGContrast:
        return BGContrast((0.75, 1.25))

    return ComposeTransforms(
        [
            RandomTransform(GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.2),
            RandomTransform(GaussianBlurTransform(fitting_sigma(0.5, 1.0), synchronize_channels=True), 0.2),
            RandomTransform(MultiplicativeBrightnessTransform(contrast(), True, p_per_channel=1), 0.3),
            RandomTransform(ContrastTransform(contrast(), True, True, p_per_channel=1), 0.3),
            RandomTransform(GammaTransform(BGContrast((0.7, 1.5)), 0, True, p_per_channel=1, p_retain_stats=1), 0.3),
        ]
    )


def unimiss_intensity_transforms(second: bool) -> BasicTransform:
    """Build noise, blur, brightness, contrast and gamma of UniMiSS's volumes (release), which differ between two views.

    Its shifts of brightness have a standard deviation of 0.4 of the unit of the image, as in the release, whose unit is
    1024 HU.

    Args:
        second: build those of the second view.
    """

    def contrast() -> BGContrast:
        return BGContrast((0.75, 1.25))

    p_blurred, p_multiplied, p_added, p_gamma = (0.5, 1.0, 0.5, 1.0) if second else (0.8, 0.8, 0.8, 0.8)
    sigma = fitting_sigma(0.1, 2.0)
    return ComposeTransforms(
        [
            GaussianNoiseTransform((0, 0.1)),
            RandomTransform(GaussianBlurTransform(sigma, synchronize_axes=True, p_per_channel=p_blurred), 0.8),
            RandomTransform(MultiplicativeBrightnessTransform(contrast(), False), p_multiplied),
            RandomTransform(BrightnessAdditiveTransform(0.0, 0.4, False, p_per_channel=0.8), p_added),
            ContrastTransform(contrast(), True, False),
            RandomTransform(
                GammaTransform(BGContrast((0.7, 1.5)), 0, False, p_per_channel=1, p_retain_stats=1), p_gamma
            ),
        ]
    )


def unimiss_image_transforms(patch_size: Sequence[int], second: bool) -> v2.Transform:
    """Build the transforms of UniMiSS's images (release), of which the second view is blurred and coloured more often.

    A random part of 14 to 100 % of the area, of random aspect, is resized with antialiasing; then flip, colour jitter,
    conversion to grey, and blur. They take images of values 0 to 1, grey or RGB.

    Args:
        patch_size: height and width of the views.
        second: build those of the second view.
    """
    kernel = min(23, 2 * min(patch_size) - 1)  # reflects at most the image
    p_grey, p_blurred = (0.4, 1.0) if second else (0.8, 0.5)
    return v2.Compose(
        [
            v2.RandomResizedCrop(tuple(patch_size), (0.14, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.Lambda(lambda image: image.clamp(0, 1)),  # bicubic interpolation exceeds the range
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(p_grey),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p_blurred),
        ]
    )
