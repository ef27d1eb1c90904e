"""Voxels of image files that readers pass over in silence: missing ones, NaN and infinity."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from nibabel.dataobj_images import DataobjImage

NIFTI = (".nii", ".nii.gz")


def check_complete(path: Path) -> None:
    """Read a compressed file to its end: SimpleITK fills the missing part of a truncated one with zeros.

    Raises:
        OSError, EOFError, zlib.error: if it is truncated or damaged.
    """
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(2**20):
                pass
    elif path.name.lower().endswith(".nii"):
        np.asanyarray(_nifti(path).dataobj)


def count_non_finite(path: Path) -> int:
    """Count the voxels of a NIfTI file that are NaN or infinite, which ITK reads as 0; 0 for files of other kinds.

    Raises:
        Exception: nibabel's errors if the file is truncated.
    """
    if not path.name.lower().endswith(NIFTI):
        return 0
    image = _nifti(path)
    slope, intercept = image.dataobj.slope, image.dataobj.inter  # type: ignore[attr-defined]
    if image.get_data_dtype().kind in "iu" and np.isfinite([slope, intercept]).all():  # type: ignore[attr-defined]
        return 0
    voxels = np.asanyarray(image.dataobj)
    return int(voxels.size - np.isfinite(voxels).sum())


def _nifti(path: Path) -> DataobjImage:
    return cast(DataobjImage, nibabel.load(path))  # type: ignore[attr-defined]
