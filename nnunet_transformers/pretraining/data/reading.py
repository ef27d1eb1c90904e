"""Read an image of any format, and refuse what cannot be learned from with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from numpy.typing import NDArray

from ..._image_size import check_size
from ..._orientation import orientation
from ..._voxels import check_complete, count_non_finite
from ...formats.dicom_series import read_dicom
from ...formats.readable import readable
from .cases import ImageCase
from .formats import PICTURES, ending_of
from .reduced import DECODED, by_pillow, read_picture, reduce
from .tiff import read_tiff

# axes that --reorient brings all volumes to; those of nnU-Net's readers
REORIENTED = "RAS"
# value whose square, summed over the voxels of an image, single precision can hold, in which nnU-Net normalises
LARGEST = 1e12
# mm as nnU-Net has it for pictures, whose slices are never resampled
PICTURE_SPACING = (999, 1, 1)
TIFF = (".tif", ".tiff")


class UnusableError(ValueError):
    """An image that cannot be learned from; the message is the reason."""


@dataclass(frozen=True)
class ReadImage:
    """An image as nnU-Net's preprocessor takes it.

    Attributes:
        voxels: (channels, depth, height, width), float32.
        properties: nnU-Net's, with ``spacing`` in mm, in the order of the axes.
        orientation: axes that the file stores, such as LPS; empty for pictures and 2D images.
        reader: name of nnU-Net's reader; empty for DICOM.
    """

    voxels: NDArray
    properties: dict[str, Any]
    orientation: str
    reader: str

    @property
    def is_flat(self) -> bool:
        """Whether it is a 2D image."""
        return self.voxels.shape[1] == 1


def read_image(
    case: ImageCase,
    preferred: str | None = None,
    reorient: bool = False,
    channels: int | None = None,
    longest: int | None = None,
) -> ReadImage:
    """Read an image by the first of nnU-Net's readers that can, and check it.

    Args:
        case: the image.
        preferred: name of the reader to try first, such as a plan's.
        reorient: bring volumes to ``REORIENTED``.
        channels: wanted number of channels. By default a picture has its own number without transparency, and one
            whose colours are equal everywhere has one.
        longest: shrink a 2D image so that its longest side has at most this many pixels, and average its channels.

    Raises:
        UnusableError: if it is constant, holds NaN, infinity or values that overflow, or is a volume where ``longest``
            is given.
        Exception: whatever the readers raise on broken files.
    """
    with readable(case.files) as files:
        if case.dicom:
            voxels, spacing, code = read_dicom(files, REORIENTED if reorient else None)
            image = ReadImage(voxels, {"spacing": spacing}, "" if voxels.shape[1] == 1 else code, "")
        else:
            check_size(files)
            for file in files:
                check_complete(Path(file))
            bad = sum(count_non_finite(Path(file)) for file in files)
            if bad:
                raise UnusableError(f"holds NaN or infinity in {bad} voxels")
            if longest is not None and len(files) == 1 and ending_of(files[0]) in DECODED:
                image = ReadImage(read_picture(files[0], longest), {}, "", NaturalImage2DIO.__name__)
            else:
                image = _read(files, preferred, reorient, channels)
    if longest is not None:
        if not image.is_flat:
            raise UnusableError(f"has {image.voxels.shape[1]} slices, only 2D images are shrunk to a longest side")
        voxels = reduce(image.voxels, longest)
        image = ReadImage(voxels, {**image.properties, "spacing": PICTURE_SPACING}, image.orientation, image.reader)
    elif ending_of(case.files[0]) in PICTURES and len(files) == 1:
        image = ReadImage(_colours(image.voxels, channels), image.properties, image.orientation, image.reader)
    _check_values(image.voxels)
    return image


def _read(files: Sequence[str], preferred: str | None, reorient: bool, channels: int | None) -> ReadImage:
    first: Exception | None = None
    if (voxels := _read_picture(files, channels)) is not None:
        return ReadImage(voxels, {"spacing": PICTURE_SPACING}, "", NaturalImage2DIO.__name__)
    for reader in _readers(files[0], preferred, reorient):
        try:
            voxels, properties = reader().read_images(list(files))
        except Exception as error:  # each reader raises its own errors
            first = first or error
            continue
        if len(properties["spacing"]) != 3:
            raise UnusableError("has several values per voxel, which nnU-Net does not read")
        code = orientation(Path(files[0])) if voxels.shape[1] > 1 else ""
        return ReadImage(voxels, properties, code, reader.__name__)
    raise first or UnusableError("no reader of nnU-Net's takes files of this ending")


def _read_picture(files: Sequence[str], channels: int | None) -> NDArray | None:
    """Read a picture that nnU-Net's reader would refuse or misread; None for others."""
    if ending_of(files[0]) in TIFF:
        wanted = channels if len(files) == 1 else None
        pictures = [pixels for file in files if (pixels := read_tiff(file, wanted)) is not None]
        return np.concatenate(pictures) if len(pictures) == len(files) else None
    return by_pillow(files[0]) if len(files) == 1 and ending_of(files[0]) in DECODED else None


def _readers(file: str, preferred: str | None, reorient: bool) -> Iterator[type[BaseReaderWriter]]:
    """Yield the readers for a file: the preferred one, then nnU-Net's in its order."""
    ending = ending_of(file)
    if preferred is not None:
        wanted = recursive_find_reader_writer_by_name(preferred)
        if ending in wanted.supported_file_endings:
            yield wanted
    is_volume = ending in TIFF  # whose three or four slices would pass for colours; its pictures are read above
    if ending in PICTURES and not is_volume:  # nnU-Net has no JPEG
        yield NaturalImage2DIO
    known = [SimpleITKIOWithReorient, NibabelIOWithReorient] if reorient else []
    for reader in [*known, *LIST_OF_IO_CLASSES]:
        if ending in reader.supported_file_endings and not (is_volume and reader is NaturalImage2DIO):
            yield reader


def _colours(voxels: NDArray, wanted: int | None) -> NDArray:
    """Drop transparency, and of a grey image that is stored in colour two colours."""
    if len(voxels) == 4 and wanted != 4:
        voxels = voxels[:3]
    if len(voxels) == 3 and wanted in (None, 1) and (voxels == voxels[:1]).all():
        voxels = voxels[:1]
    return voxels


def _check_values(voxels: NDArray) -> None:
    if not np.isfinite(voxels).all():
        raise UnusableError(f"holds NaN or infinity in {int(voxels.size - np.isfinite(voxels).sum())} voxels")
    for index, channel in enumerate(voxels):
        low, high = float(channel.min()), float(channel.max())
        if low == high:
            raise UnusableError(f"channel {index} is constant ({low:g})")
        if max(abs(low), abs(high)) > LARGEST:
            raise UnusableError(f"channel {index} holds values up to {max(abs(low), abs(high)):g}, which overflow")
