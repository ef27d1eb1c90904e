"""Axis orientation of images. nnU-Net's usual reader does not reorient, so it must be that of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

PICTURES = (".png", ".bmp", ".tif", ".tiff")


def orientation(path: Path) -> str:
    """Return the axis orientation of an image, such as LPS; empty if it is not a 3D image or cannot be read."""
    if path.suffix.lower() in PICTURES:
        return ""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return ""
    if reader.GetDimension() != 3:
        return ""
    return sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(reader.GetDirection())


def training_orientations(model: Path, folds: Sequence[str], file_ending: str) -> tuple[str, ...]:
    """Return the sorted axis orientations of a model's training images, read from its validation's segmentations.

    Args:
        model: nnU-Net's folder of the model.
        folds: folds whose validation is read.
        file_ending: file ending of the segmentations.
    """
    found = {orientation(p) for fold in folds for p in (model / f"fold_{fold}" / "validation").glob(f"*{file_ending}")}
    return tuple(sorted(found - {""}))
