"""Axis orientation of images, and where they lie.

nnU-Net's usual readers do not reorient, so the orientation must be that of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .formats.readable import readable

# readers of nnU-Net that do reorient, and to what
REORIENTING = {"SimpleITKIOWithReorient": "RAS", "NibabelIOWithReorient": "RAS"}
PICTURES = (".png", ".bmp", ".tif", ".tiff")


def reoriented_by(reader: type) -> str | None:
    """Return the axes that a reader of nnU-Net, or a class of this package that extends it, turns images to, if any."""
    return next((REORIENTING[base.__name__] for base in reader.__mro__ if base.__name__ in REORIENTING), None)


def grid_corners(path: Path) -> NDArray | None:
    """Return the first voxel's place, that of its neighbour along each axis, and the last voxel's, in mm, by rows.

    None if the file has no header that SimpleITK reads.
    """
    reader = read_header(path)
    if reader is None:
        return None
    size, dimension = reader.GetSize(), reader.GetDimension()
    axes = np.reshape(reader.GetDirection(), (dimension, dimension)) * reader.GetSpacing()
    steps = [np.zeros(dimension), *np.eye(dimension), np.array(size) - 1]
    return np.array([np.add(reader.GetOrigin(), axes @ step) for step in steps])


def displacement(path: Path, other: Path) -> float:
    """Return by how many mm two images of one size lie apart, at most, by their headers.

    0 if that is within a voxel of the other, or if a header does not say.
    """
    corners = [grid_corners(file) for file in (path, other)]
    if corners[0] is None or corners[1] is None or corners[0].shape != corners[1].shape:
        return 0.0
    distance = float(np.linalg.norm(corners[0] - corners[1], axis=1).max())
    voxel = float(np.linalg.norm(corners[1][1:] - corners[1][0], axis=1).min())
    return distance if distance > voxel else 0.0


def orientation(path: Path) -> str:
    """Return the axis orientation of an image, such as LPS; empty if it is not a 3D image or cannot be read."""
    if path.suffix.lower() in PICTURES:
        return ""
    reader = read_header(path)
    if reader is None or reader.GetDimension() != 3:
        return ""
    return sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(reader.GetDirection())


def read_header(path: Path) -> sitk.ImageFileReader | None:
    """Return the reader of an image's header; None if SimpleITK reads none."""
    reader = sitk.ImageFileReader()
    with readable([str(path)]) as (name,):
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return None
    return reader


def training_orientations(model: Path, folds: Sequence[str], file_ending: str) -> tuple[str, ...]:
    """Return the sorted axis orientations of a model's training images, read from its validation's segmentations.

    Args:
        model: nnU-Net's folder of the model.
        folds: folds whose validation is read.
        file_ending: file ending of the segmentations.
    """
    found = {orientation(p) for fold in folds for p in (model / f"fold_{fold}" / "validation").glob(f"*{file_ending}")}
    return tuple(sorted(found - {""}))
