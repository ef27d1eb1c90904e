"""Augmentations whose parameters a method has to know: rotation by right angles and cut-out boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotations_of(patch_size: Sequence[int]) -> list[int]:
    """Right angles about the first axis (the normal, in 2D) that keep a crop's shape: all four where it is square."""
    return [0, 1, 2, 3] if patch_size[-1] == patch_size[-2] else [0, 2]


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Turn each image in-plane.

    Args:
        images: (batch, channels, *size).
        turns: (batch,) right angles.
    """
    return torch.stack([torch.rot90(image, int(k), (-2, -1)) for image, k in zip(images, turns, strict=True)])


def cut_out(images: Tensor, boxes: tuple[int, int] = (1, 3), edge: tuple[float, float] = (1 / 3, 2 / 3)) -> Tensor:
    """Fill random boxes of each image with uniform noise in the image's range (QT-UNet thesis, section 3.3.12).

    Args:
        images: (batch, channels, *size); not changed.
        boxes: least and most boxes in an image.
        edge: least and most length of a box along an axis, as a part of the image; at 96 voxels, 32 to 64.
    """
    images = images.clone()
    size = images.shape[2:]
    for image in images:
        low, high = image.min(), image.max()
        for _ in range(int(torch.randint(boxes[0], boxes[1] + 1, ()))):
            at = []
            for n in size:
                length = max(1, round(n * float(torch.empty(()).uniform_(*edge))))
                start = int(torch.randint(n - length + 1, ()))
                at.append(slice(start, start + length))
            box = image[(slice(None), *at)]
            box.copy_(low + (high - low) * torch.rand_like(box))
    return images
