"""Segmentations as DICOM-SEG, one segment per label, on the slices of the series that was segmented, by highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from skimage.color import rgb2lab

from .. import __version__
from .._atomic import replacing

if TYPE_CHECKING:
    pass

NEEDED = ("pydicom", "highdicom")
MAKER = "nnunet-transformers"
# of characters, that DICOM allows in a label
LONGEST = 64


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
    import highdicom
    from pydicom import dcmread

    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(segmentation)))
    voxels = voxels[None] if voxels.ndim == 2 else voxels
    sources = [dcmread(file, stop_before_pixels=True) for file in series]
    frames = len(sources) if len(sources) > 1 else int(sources[0].get("NumberOfFrames", 1))
    size = (frames, int(sources[0].Rows), int(sources[0].Columns))
    if voxels.shape != size:
        raise ValueError(f"the segmentation has {voxels.shape} voxels, the series {size}")
    names = [name for name in labels if labels[name] not in (0, [0]) and name != "ignore"]
    if not any(isinstance(labels[name], list) for name in names):
        names.sort(key=labels.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty segmentation, and what vendors write into their files
        try:
            result = highdicom.seg.Segmentation(
                sources,
                _planes(voxels, [labels[name] for name in names]),
                highdicom.seg.SegmentationTypeValues.BINARY,
                [_describe(number, name, (codes or {}).get(name)) for number, name in enumerate(names, 1)],
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
            )
        except (AttributeError, KeyError) as error:
            raise ValueError(f"the series cannot be the source of a DICOM-SEG: {error}") from error
        with replacing(path) as partial:
            result.save_as(partial)


def _planes(voxels: NDArray[Any], values: Sequence[Any]) -> NDArray[np.uint8 | np.uint16]:
    """Return segment numbers, (frames, rows, columns), or for regions a mask of each, along a last axis."""
    if any(isinstance(value, list) for value in values):
        masks = [np.isin(voxels, value) for value in values]
        return np.stack(masks, axis=-1).astype(np.uint8)
    numbers = np.zeros(int(max(voxels.max(initial=0), *values)) + 1, np.uint16 if len(values) > 255 else np.uint8)
    numbers[list(values)] = range(1, len(values) + 1)
    return numbers[voxels]


def _describe(number: int, name: str, code: Sequence[str] | None) -> Any:
    import highdicom
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    kind = CodedConcept(*code) if code else CodedConcept(f"LABEL{number}", "99NNUNET", name[:LONGEST])
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:LONGEST],
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
