"""What prediction knows of a format: names of cases, files of a case for a while, and where segmentations go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import SimpleITK as sitk

from .readable import encodable

# endings of nnU-Net's datasets that hold geometry; .tif keeps it in another file
CONVERTIBLE = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp")


class Source(Protocol):
    """Cases of a folder in some format.

    Attributes:
        names: names of the cases.
        problems: files that belong to no case, with the reason.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def problems(self) -> Mapping[str, str]: ...

    def check(self, name: str) -> None:
        """Check, before a case is predicted, that its segmentation could be written.

        Raises:
            ValueError: if the case lacks what the source's format needs.
        """
        ...

    def files(self, name: str) -> AbstractContextManager[list[Path]]:
        """Give the files of a case, one per channel, in the format of the model's dataset, as long as it is open.

        Raises:
            ValueError, RuntimeError: if the case cannot be read or has no such form.
        """
        ...

    def target(self, name: str, output: Path) -> Path:
        """Return the file that the segmentation of a case is written to, below the folder ``output``."""
        ...

    def write(self, name: str, segmentation: Path, target: Path) -> None:
        """Write a segmentation, a file in the format of the dataset, in the source's format, whole or not at all."""
        ...


def write_image(image: sitk.Image, path: Path, origin: str | Path, channel: str) -> None:
    """Write an image in the format of a dataset.

    Args:
        image: 2D or 3D.
        path: file to write.
        origin: file that the image was read from, or the first of a series.
        channel: name of the model's channel that it is.

    Raises:
        ValueError: if the image has several values per voxel, or is not converted to that format.
    """
    if (count := image.GetNumberOfComponentsPerPixel()) > 1:
        raise ValueError(
            f"{encodable(str(origin))} has {count} values per voxel, as colour images have; the model takes one "
            f"(channel {channel}). Convert the image to greyscale"
        )
    if not path.name.endswith(CONVERTIBLE):
        raise ValueError(
            f"the model reads {''.join(path.suffixes[-1:])} files, to which images of other formats are not converted; "
            f"convert to one of {', '.join(CONVERTIBLE)} before training"
        )
    if path.suffix in (".png", ".bmp") and image.GetDimension() == 3 and image.GetDepth() == 1:
        image = image[:, :, 0]
    sitk.WriteImage(image, str(path))
