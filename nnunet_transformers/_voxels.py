"""Voxels of image files that readers pass over in silence: missing ones, NaN and infinity."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
from nibabel.dataobj_images import DataobjImage
from nibabel.filebasedimages import ImageFileError

NIFTI = (".nii", ".nii.gz")


def check_complete(path: Path) -> None:
    """Check that a NIfTI or compressed file has all its voxels: SimpleITK fills what a truncated one lacks with zeros.

    A compressed file states its length at its end; one whose end does not fit its header is read whole.

    Raises:
        OSError, EOFError, zlib.error: if it is truncated or damaged.
    """
    if path.name.lower().endswith(".gz"):
        if _ends_as_stated(path):
            return
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


def _ends_as_stated(path: Path) -> bool:
    """Whether the end of a gzip file states the length that the NIfTI header in it needs."""
    if not path.name.lower().endswith(NIFTI):
        return False
    try:
        voxels = _nifti(path).dataobj
    except ImageFileError:  # no header: a damaged file, or none of NIfTI
        return False
    needed = voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize  # type: ignore[attr-defined]
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little") == needed % 2**32


def _nifti(path: Path) -> DataobjImage:
    return cast(DataobjImage, nibabel.load(path))  # type: ignore[attr-defined]
