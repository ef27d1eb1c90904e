"""Segmentations as DICOM-SEG, one segment per label, on the slices of the series that was segmented, by highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from skimage.color import rgb2lab

from .. import __version__
from .._atomic import replacing

NEEDED = ("pydicom", "highdicom")
MAKER = "nnunet-transformers"
# of characters, that DICOM allows in a label
LONGEST = 64
# the character set that has all of them, and DICOM's name of it
UTF_8 = "ISO_IR 192"


def check_installed() -> None:
    """Raise ModuleNotFoundError without pydicom and highdicom."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f"{name} is not installed, which writes DICOM-SEG; pip install 'nnunet-transformers[dicom]'"
            )


def write_dicom_segmentation(
    segmentation: Path,
    series: Sequence[str],
    labels: Mapping[str, Any],
    path: Path,
    codes: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a segmentation as DICOM-SEG (binary, DICOM PS3.3 A.51), whole or not at all.

    Each label is a segment with its name, and with its number where labels count from 1; a region is a segment that can
    overlap others.
    Patient, study, frame of reference, and the position of every frame are those of the series.

    Args:
        segmentation: label map on the grid of the series, a file that SimpleITK reads.
        series: files of the series in the order of the slices, or one file of several frames.
        labels: those of dataset.json: a number, or the numbers of a region, by name.
        path: file to write.
        codes: (value, scheme, meaning) of what a label is, such as ("4421005", "SCT", "Cell"), by name. A label
            without one has a private code with its name.

    Raises:
        ModuleNotFoundError: without the extra ``[dicom]``.
        ValueError: if the label map is not on the grid of the series, or the series lacks what DICOM-SEG needs.
    """
    check_installed()
    from pydicom import dcmread

    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(segmentation)))
    voxels = voxels[None] if voxels.ndim == 2 else voxels
    sources = [dcmread(file, stop_before_pixels=True) for file in series]
    if voxels.shape != (size := _size(sources)):
        raise ValueError(f"the segmentation has {voxels.shape} voxels, the series {size}")
    result = _segmentation(voxels, sources, labels, codes or {})
    with warnings.catch_warnings(), replacing(path) as partial:
        warnings.simplefilter("ignore")  # what vendors write into their files
        result.save_as(partial)


def check_source(series: Sequence[str], labels: Mapping[str, Any], codes: Mapping[str, Sequence[str]]) -> None:
    """Check that a series has what DICOM-SEG needs: an empty one of its first slice can be made.

    Args:
        series, labels, codes: as for ``write_dicom_segmentation``.

    Raises:
        ValueError: if it lacks something.
    """
    from pydicom import dcmread

    sources = [dcmread(series[0], stop_before_pixels=True)]
    _segmentation(np.zeros(_size(sources), np.uint8), sources, labels, codes)


def _size(sources: Sequence[Any]) -> tuple[int, int, int]:
    """Return frames, rows and columns of a series."""
    frames = len(sources) if len(sources) > 1 else int(sources[0].get("NumberOfFrames", 1))
    return frames, int(sources[0].Rows), int(sources[0].Columns)


def _segmentation(
    voxels: NDArray[Any], sources: Sequence[Any], labels: Mapping[str, Any], codes: Mapping[str, Sequence[str]]
) -> Any:
    """Return a label map, (frames, rows, columns), as the dataset that is to be written."""
    import highdicom

    names = [name for name in labels if labels[name] not in (0, [0]) and name != "ignore"]
    if not any(isinstance(labels[name], list) for name in names):
        names.sort(key=labels.__getitem__)
    characters = sources[0].get("SpecificCharacterSet")
    is_ascii = all(text.isascii() for name in names for text in (name, *codes.get(name, ())))
    if not is_ascii or not isinstance(characters, str | None):  # of several sets, highdicom takes none
        characters = UTF_8
        for source in sources:  # whose texts are copied
            source.decode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty segmentation, and what vendors write into their files
        try:
            return highdicom.seg.Segmentation(
                sources,
                _planes(voxels, [labels[name] for name in names]),
                highdicom.seg.SegmentationTypeValues.BINARY,
                [_describe(number, name, codes.get(name)) for number, name in enumerate(names, 1)],
                series_instance_uid=highdicom.UID(),
                series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=MAKER,
                software_versions=__version__,
                device_serial_number=__version__,
                content_label="SEGMENTATION",
                content_description="Segmentation by a network",
                series_description="Segmentation",
                specific_character_set=characters,
            )
        except (AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"the series cannot be the source of a DICOM-SEG: {error}") from error


def _planes(voxels: NDArray[Any], values: Sequence[Any]) -> NDArray[np.uint8 | np.uint16]:
    """Return segment numbers, (frames, rows, columns), or for regions a mask of each, along a last axis."""
    if any(isinstance(value, list) for value in values):
        masks = [np.isin(voxels, value) for value in values]
        return np.stack(masks, axis=-1).astype(np.uint8)
    numbers = np.zeros(int(max(voxels.max(initial=0), *values)) + 1, np.uint16 if len(values) > 255 else np.uint8)
    numbers[list(values)] = range(1, len(values) + 1)
    return numbers[voxels]


def _text(name: str) -> str:
    """Return a text as one value of DICOM, whose values a backslash separates."""
    return name.replace("\\", "/")[:LONGEST]


def _describe(number: int, name: str, code: Sequence[str] | None) -> Any:
    import highdicom
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    kind = CodedConcept(*map(_text, code)) if code else CodedConcept(f"LABEL{number}", "99NNUNET", _text(name))
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(name),
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=MAKER, version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    segment.RecommendedDisplayCIELabValue = _colour(number)
    return segment


def _colour(number: int) -> list[int]:
    """Return a colour for a segment, of hues that are far apart for neighbours, as PS3.3 C.10.7.1.1 scales CIELab."""
    rgb = hsv_to_rgb(number * (5**0.5 - 1) / 2 % 1, 0.7, 0.9)
    lightness, a, b = rgb2lab(rgb)
    return [round(65535 * share) for share in (lightness / 100, (a + 128) / 255, (b + 128) / 255)]
