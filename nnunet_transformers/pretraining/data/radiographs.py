"""Radiographs of a folder: of files as downloaded, or of a prepared folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RescaleTo01Normalization
from torch import Tensor

from ..._paths import inside
from ...formats.dicom_series import is_dicom
from .cases import ImageCase
from .formats import FILE_ENDINGS, ending_of
from .index import INDEX
from .manifest import MANIFEST
from .names import known_name
from .prepared_images import PreparedImages
from .reading import read_image

# pixels that no image has: an image is read as it is
WHOLE = 2**31


class Radiographs(Protocol):
    """Radiographs by the names that a table has for them."""

    def missing(self, name: str) -> str:
        """Return why there is no such image; empty if there is."""

    def read(self, name: str, channels: int) -> Tensor:
        """Read an image, (channels, height, width), in the range 0 to 1."""


def open_radiographs(folder: Path, longest: int) -> Radiographs:
    """Open a prepared folder, or a folder of files.

    Args:
        folder: folder that names are relative to.
        longest: pixels of the longest side that will be needed, as ``read_radiograph`` takes it.

    Raises:
        FileNotFoundError: if the preparation of the folder was interrupted.
        ValueError: if it was not prepared by ``--normalization rescale_to_0_1``.
    """
    is_prepared = (folder / INDEX).is_file() or (folder / MANIFEST).is_file()
    return PreparedRadiographs(folder) if is_prepared else RadiographFiles(folder, longest)


class RadiographFiles:
    """Files of a folder.

    Args:
        folder, longest: as ``open_radiographs`` takes them.
    """

    def __init__(self, folder: Path, longest: int) -> None:
        self.folder, self.longest = folder, longest

    def missing(self, name: str) -> str:
        """Return why there is no such file; empty if there is."""
        try:
            file = inside(self.folder, name)
        except ValueError:
            return "image is outside of the folder of the images"
        return "" if file.is_file() else "image does not exist"

    def read(self, name: str, channels: int) -> Tensor:
        """Read a file as ``read_radiograph`` does."""
        return read_radiograph(self.folder / name, channels, self.longest)


class PreparedRadiographs:
    """Images of a prepared folder, by the paths of their files in its source or by their names.

    Args:
        folder: folder that was prepared by ``--normalization rescale_to_0_1``.

    Raises:
        ValueError: if it was prepared otherwise, or holds volumes.
    """

    def __init__(self, folder: Path) -> None:
        self.images = PreparedImages(folder)
        self.known = frozenset(self.images.names)
        found = set(self.images.index.normalization)
        if found != {RescaleTo01Normalization.__name__} or any(s[1] != 1 for s in self.images.shapes.values()):
            raise ValueError(
                f"{folder} does not hold 2D images of the range 0 to 1; prepare radiographs with --longest 256 "
                "--normalization rescale_to_0_1"
            )

    def missing(self, name: str) -> str:
        """Return why there is no such image; empty if there is."""
        return "" if known_name(name, self.known, self.images.files) else "image is not in the prepared folder"

    def read(self, name: str, channels: int) -> Tensor:
        """Read a stored image."""
        found = known_name(name, self.known, self.images.files)
        if found is None:
            raise ValueError("is not in the prepared folder")
        image = self.images.read(found, (0, 0, 0), self.images.shapes[found][1:])[:, 0]
        return image.mean(0, keepdim=True).expand(channels, -1, -1)


def read_radiograph(file: Path, channels: int, longest: int | None = None) -> Tensor:
    """Read a 2D image in JPEG, DICOM or one of nnU-Net's formats.

    Args:
        file: the image.
        channels: number of channels to return, which are equal: the mean over the image's colours.
        longest: shrink the image so that its longest side has at most this many pixels; None reads it as it is.

    Returns:
        (channels, height, width), scaled to the range 0 to 1 for each image.

    Raises:
        ValueError: if the image is not 2D, constant (also as it is returned), too large for memory, or of no known
            format.
        Exception: errors of the readers on broken files.
    """
    dicom = is_dicom(file)
    if not dicom and not ending_of(file.name):
        raise ValueError(f"has the ending {file.suffix or 'nothing'}, not one of {', '.join(FILE_ENDINGS)}, .dcm")
    voxels = read_image(ImageCase(file.name, (str(file),), dicom=dicom), longest=longest or WHOLE).voxels
    image = torch.from_numpy(voxels[:, 0])
    image = image - image.min()
    return (image / image.max()).expand(channels, -1, -1)
