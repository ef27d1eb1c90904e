"""How the axes of images are stored. nnU-Net's usual reader takes the array as it is, so images have to agree in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

PICTURES = (".png", ".bmp", ".tif", ".tiff")


def orientation(path: Path) -> str:
    """How an image's axes are stored, such as LPS; empty for what has no axes in space."""
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
    """How the axes of a model's training images were stored: as those of its validation's segmentations are.

    Args:
        model: nnU-Net's folder of it.
        folds: whose validation to look at.
        file_ending: of segmentations.
    """
    found = {orientation(p) for fold in folds for p in (model / f"fold_{fold}" / "validation").glob(f"*{file_ending}")}
    return tuple(sorted(found - {""}))
