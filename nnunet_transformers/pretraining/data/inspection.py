"""First look at an image: what the plan of a folder without a plan is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._reading import first_line
from .cases import ImageCase
from .index import Skipped
from .intensities import Intensities
from .reading import UnusableError, read_image


@dataclass(frozen=True)
class Inspection:
    """Settings of the first look.

    Attributes:
        reader: name of nnU-Net's reader to try first.
        reorient: bring volumes to one orientation.
        window: lowest and highest intensity; others are clipped.
        longest, channels: as ``read_image`` takes them.
    """

    reader: str | None = None
    reorient: bool = False
    window: tuple[float, float] | None = None
    longest: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of an image.

    Attributes:
        spacing: mm per voxel and axis.
        is_flat: whether it is a 2D image.
        reader: name of nnU-Net's reader that read it; empty for DICOM.
        cropped_share: share of the image inside of the box around its non-zero voxels.
        intensities: statistics of each channel.
    """

    spacing: tuple[float, ...]
    is_flat: bool
    reader: str
    cropped_share: float
    intensities: tuple[Intensities, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Facts:
        """Restore what ``to_json`` returns."""
        return cls(
            tuple(float(s) for s in content["spacing"]),
            bool(content["is_flat"]),
            str(content["reader"]),
            float(content["cropped_share"]),
            tuple(Intensities.from_json(channel) for channel in content["intensities"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain types."""
        return {**vars(self), "intensities": [channel.to_json() for channel in self.intensities]}


def inspect_case(settings: Inspection, case: ImageCase) -> Facts | Skipped:
    """Read an image and gather its facts; or return why it cannot be used."""
    try:
        image = read_image(case, settings.reader, settings.reorient, settings.channels, settings.longest)
        return Facts(
            tuple(float(s) for s in image.properties["spacing"]),
            image.is_flat,
            image.reader,
            _cropped_share(image.voxels),
            tuple(Intensities.of(channel, settings.window) for channel in image.voxels),
        )
    except Exception as error:  # each reader raises its own errors for broken files
        return Skipped(case.name, reason_of(error, "cannot be read"))


def reason_of(error: Exception, what: str) -> str:
    """Return why an image is skipped: the message of ``UnusableError``, or what failed and the error's first line."""
    if isinstance(error, UnusableError):
        return str(error)
    _, _, of_itk = str(error).partition("ERROR: ")  # before it SimpleITK names files of its own source
    return f"{what}: {first_line(ValueError(of_itk) if of_itk.strip() else error)}"


def _cropped_share(voxels: NDArray) -> float:
    """Return the share of an image that nnU-Net's crop to the non-zero region keeps."""
    mask = (voxels != 0).any(axis=0)
    axes: Sequence[int] = range(mask.ndim)
    share = 1.0
    for axis in axes:
        used = np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis)))
        share *= (used[-1] - used[0] + 1) / mask.shape[axis]
    return float(share)
