"""Voxels of image files that readers pass over in silence: missing ones, NaN and infinity."""

from __future__ import annotations

import gzip
import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from nibabel.dataobj_images import DataobjImage
from nibabel.filebasedimages import ImageFileError

from ._reading import RefusedError

NIFTI = (".nii", ".nii.gz")


def check_complete(path: Path) -> None:
    """Check that a NIfTI or compressed file has all its voxels: SimpleITK fills what a truncated one lacks with zeros.

    A compressed file is read to its end, where its checksum is.

    Raises:
        OSError, EOFError, zlib.error: if it is truncated or damaged.
    """
    name = path.name.lower()
    if name.endswith(".gz") and _is_compressed(path):
        length = 0
        with gzip.open(path) as stream:
            try:
                for part in iter(partial(stream.read1, 2**20), b""):
                    length += len(part)
            except gzip.BadGzipFile as error:
                # what follows the compressed image is not read by ITK either
                if not (length and str(error).startswith("Not a gzipped file")):
                    raise
    else:
        length = path.stat().st_size
    if name.endswith(NIFTI) and length < (needed := _length(path)):
        raise EOFError(f"it has {length} bytes of {needed}")


def _is_compressed(path: Path) -> bool:
    """Whether it is, whatever its name: ITK reads both."""
    with path.open("rb") as stream:
        return stream.read(2) in (b"\x1f\x8b", b"")


def count_non_finite(path: Path) -> int:
    """Count the voxels of a NIfTI file that are NaN or infinite, which ITK reads as 0; 0 for files of other kinds.

    Raises:
        RefusedError: if its voxels are colours, each of several values.
        Exception: nibabel's errors if the file is truncated.
    """
    if not path.name.lower().endswith(NIFTI):
        return 0
    image = _nifti(path)
    stored: np.dtype[Any] = image.get_data_dtype()  # type: ignore[attr-defined]
    if stored.names is not None:
        raise RefusedError(
            f"{path.name} has several values per voxel (colours), which nnU-Net does not read; save each as an image "
            "of its own"
        )
    slope, intercept = image.dataobj.slope, image.dataobj.inter  # type: ignore[attr-defined]
    if stored.kind in "iu" and np.isfinite([slope, intercept]).all():
        return 0
    voxels = np.asanyarray(image.dataobj)
    return int(voxels.size - np.isfinite(voxels).sum())


def _length(path: Path) -> int:
    """Bytes that a NIfTI file has, uncompressed, by its header; 0 if it has none that nibabel reads."""
    try:
        voxels = _nifti(path).dataobj
    except ImageFileError:
        return 0
    return int(voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize)  # type: ignore[attr-defined]


def _nifti(path: Path) -> DataobjImage:
    if path.name.lower().endswith(".gz") and not _is_compressed(path):
        return nibabel.Nifti1Image.from_bytes(path.read_bytes())  # type: ignore[attr-defined,no-any-return]
    return cast(DataobjImage, nibabel.load(path))  # type: ignore[attr-defined]
