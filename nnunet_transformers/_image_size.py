"""Size of images by their headers, checked before memory is taken for their voxels."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from os import PathLike
from pathlib import Path

import nibabel
import SimpleITK as sitk

from ._memory import available_bytes
from ._voxels import NIFTI
from .formats.readable import readable

# bytes of a voxel once nnU-Net has read it, besides those that it has in the file
AS_READ = 4
# bytes that a byte of the file can hold: deflate, which .gz and PNG use, has this limit
DEFLATE = 1032
EXPANSION = {".nii": 1, ".nii.gz": DEFLATE, ".png": DEFLATE}


def check_size(files: Iterable[str | PathLike[str]]) -> None:
    """Check that the images of a case are as large as their headers claim, and fit into memory.

    Args:
        files: one file, or one per channel. What has no header that SimpleITK reads is left to its reader.

    Raises:
        ValueError: if a header claims more than its file can hold, or all together more than the free memory.
    """
    needed = 0
    for path in map(Path, files):
        size, itemsize = _header(path)
        claimed, held = prod(size) * _stored_bytes(path, itemsize), path.stat().st_size
        expansion = next((factor for ending, factor in EXPANSION.items() if path.name.lower().endswith(ending)), None)
        if expansion is not None and claimed > expansion * held:
            raise ValueError(
                f"{path.name} is truncated: its header claims {'x'.join(map(str, size))} voxels, which {held} bytes "
                "cannot hold"
            )
        needed += prod(size) * (itemsize + AS_READ)
    free = available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"too large for memory: {'x'.join(map(str, size))} voxels need {needed / 1e9:.1f} GB to be read, "
            f"{free / 1e9:.1f} GB are free"
        )


def _header(path: Path) -> tuple[tuple[int, ...], int]:
    """Return the voxels per axis and the bytes of each; no voxels if the file has no header that can be read."""
    reader = sitk.ImageFileReader()
    try:
        with readable([str(path)]) as (name,):
            reader.SetFileName(name)
            reader.ReadImageInformation()
        voxel = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    except RuntimeError:
        return (0,), 0
    return reader.GetSize(), voxel.GetSizeOfPixelComponent() * voxel.GetNumberOfComponentsPerPixel()


def _stored_bytes(path: Path, itemsize: int) -> int:
    """Return the bytes of a voxel in the file, which ITK states as read: with a slope, two bytes become four."""
    if not path.name.lower().endswith(NIFTI):
        return itemsize
    try:
        stored: int = nibabel.load(path).get_data_dtype().itemsize  # type: ignore[attr-defined]
    except Exception:  # damaged in a way that ITK's reader passes over; that of the voxels says so
        return itemsize
    return min(stored, itemsize)
