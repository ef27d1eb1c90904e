"""Phantoms with known maps between them: the same organs, stretched, sheared and in another field of view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.special import expit

from nnunet_transformers.pretraining.matching import Volume
from nnunet_transformers.pretraining.matching.matcher import apply_affine

SHAPE, SPACING = (32, 32, 32), (3.0, 3.0, 3.0)
_rng = np.random.default_rng(7)
CENTRES = _rng.uniform(-20, 120, (60, 3))
RADII = _rng.uniform(5, 16, (60, 3))
VALUES = _rng.uniform(-1, 1, 60)


def anatomy(places: NDArray) -> NDArray:
    """Compute the grey values at positions of the body, (..., 3) in mm."""
    grey = np.zeros(places.shape[:-1])
    for centre, radius, value in zip(CENTRES, RADII, VALUES, strict=True):
        grey += value * expit(6 * (1 - (((places - centre) / radius) ** 2).sum(-1)))
    return grey


def random_map(rng: np.random.Generator, shift: float, stretch: float = 0.1) -> NDArray:
    """Draw a 4x4 matrix from mm of a volume to mm of the body."""
    matrix = np.eye(4)
    matrix[:3, :3] += rng.uniform(-stretch, stretch, (3, 3)) * np.where(np.eye(3), 1, 0.5)
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


def make_volume(name: str, matrix: NDArray, seed: int = 0, noise: float = 0.03) -> Volume:
    """Make the volume that shows the body by this map."""
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True)), indexing="ij"), -1)
    grey = anatomy(apply_affine(matrix, grid.reshape(-1, 3))).reshape(SHAPE)
    grey = grey + np.random.default_rng(seed).normal(0, noise, SHAPE)
    return Volume(name, grey[None].astype(np.float32), SPACING)


def true_match(query: NDArray, key: NDArray, points: NDArray) -> NDArray:
    """Map points of the query into the key by the maps of both."""
    return apply_affine(np.linalg.inv(key) @ query, points)


def write_volumes(folder: Path, number: int, shift: float) -> Path:
    """Write ``number`` volumes with random maps into a new folder; return the folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for case in range(number):
        image = sitk.GetImageFromArray(make_volume(f"case_{case}", random_map(rng, shift), case).image[0])
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, str(folder / f"case_{case}.nii.gz"))
    return folder
