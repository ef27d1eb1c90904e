"""DICOM files: which of them form a volume, and their voxels, by SimpleITK (GDCM), which decodes all usual syntaxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .readable import readable

SERIES, MODALITY, ROWS, COLUMNS = "0020|000e", "0008|0060", "0028|0010", "0028|0011"
POSITION, DIRECTIONS, FRAMES, SPACING = "0020|0032", "0020|0037", "0028|0008", "0028|0030"
# what the values of the voxels depend on: allocated and stored bits, sign, rescale intercept and slope
VALUES = ("0028|0100", "0028|0101", "0028|0103", "0028|1052", "0028|1053")
ENDINGS = (".dcm", ".dicom", ".ima")
# of modalities whose files are no images to learn from
NOT_IMAGES = {"SEG": "a segmentation", "RTDOSE": "a dose"}
NO_PIXELS = "DICOM without pixels, such as a report, or damaged"
# largest distance of two slices, relative to the median one, and mm by which two are at one place
GAP, SAME = 1.5, 0.01


@dataclass(frozen=True)
class _Slice:
    path: str
    series: str
    shape: tuple[str, str]
    directions: tuple[float, ...]
    normal: NDArray
    position: NDArray  # mm
    pixel: float  # mm
    values: tuple[str, ...]  # of ``VALUES``

    @property
    def place(self) -> float:
        """Mm along the normal."""
        return float(self.normal @ self.position)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its ending or, as hospitals export it without, by its first bytes."""
    if path.name.lower().endswith(ENDINGS):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_series(folder: Path, paths: Iterable[str]) -> tuple[dict[str, tuple[str, tuple[str, ...]]], dict[str, str]]:
    """Group DICOM files into images: slices with one SeriesInstanceUID, orientation and size are a volume.

    Files without a position in the patient, such as radiographs, are an image each, whatever series they belong to.

    Args:
        folder: source folder.
        paths: DICOM files, relative to it.

    Returns:
        wanted name and files, in the order of the slices, of each image by its key, the UID of the series or the path
        of the file; and the unusable files with reasons.
    """
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {}
    unusable: dict[str, str] = {}
    groups: dict[tuple[str, tuple[str, str], tuple[float, ...]], list[_Slice]] = defaultdict(list)
    for path in paths:
        try:
            tags = _tags(folder / path)
        except RuntimeError:
            unusable[path] = NO_PIXELS
            continue
        modality = tags.get(MODALITY, "").strip()
        if modality in NOT_IMAGES:
            unusable[path] = f"DICOM with {NOT_IMAGES[modality]} ({modality})"
        elif part := _slice(path, tags):
            groups[part.series, part.shape, part.directions].append(part)
        else:
            wanted[path] = alone(path), (str(folder / path),)
    for (series, _, _), slices in groups.items():
        if len(slices) == 1:
            wanted[slices[0].path] = alone(slices[0].path), (str(folder / slices[0].path),)
            continue
        ordered = sorted(slices, key=lambda s: s.place)
        # anonymisation may have removed the UID
        name = series or alone(ordered[0].path)
        key = name if name not in wanted else f"{name}/{ordered[0].path}"
        wanted[key] = (name, tuple(str(folder / s.path) for s in ordered))
    return wanted, unusable


def read_series(files: Sequence[str], may_be_sheared: bool = False) -> sitk.Image:
    """Read an image with rescale slope and intercept; ITK inverts MONOCHROME1, so that bone is bright.

    Args:
        files: one file, or those of a series in the order of the slices.
        may_be_sheared: take slices that are shifted against each other, as with a tilted gantry, for a straight stack.

    Raises:
        ValueError: if slices are missing, twice, or shifted.
        RuntimeError: SimpleITK's errors.
    """
    with readable(files) as names:
        if len(names) == 1:
            return sitk.ReadImage(names[0])
        slices = [part for name in names if (part := _slice(name, _tags(Path(name))))]
        _check_places(slices)
        if not may_be_sheared:
            _check_straight(slices)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        if len({part.values for part in slices}) > 1:
            # ITK would store all slices in the type of the first
            reader.SetOutputPixelType(sitk.sitkFloat32)
        return reader.Execute()


def read_dicom(files: Sequence[str], orientation: str | None = None) -> tuple[NDArray, tuple[float, ...], str]:
    """Read an image to learn from as ``read_series`` does, as an array; a tilted gantry does no harm there.

    Args:
        files: one file, or those of a series in the order of the slices.
        orientation: axes to reorient a volume to, such as RAS; None keeps them.

    Returns:
        voxels (channels, depth, height, width), float32, spacing in mm in this order, and the orientation of the axes.

    Raises:
        ValueError, RuntimeError: as ``read_series``.
    """
    image = read_series(files, may_be_sheared=True)
    if orientation is not None and image.GetDimension() == 3 and image.GetDepth() > 1:
        image = sitk.DICOMOrient(image, orientation)
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    components = image.GetNumberOfComponentsPerPixel()
    voxels = np.moveaxis(voxels, -1, 0) if components > 1 else voxels[None]
    if voxels.ndim == 3:
        voxels = voxels[:, None]
    spacing = tuple(float(s) for s in reversed(image.GetSpacing()[:3]))
    if voxels.shape[1] == 1:
        # as nnU-Net has it for 2D images, whose slices are never resampled
        spacing = (999 * max(spacing[-2:]), *spacing[-2:])
    code = ""
    if image.GetDimension() == 3:
        code = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(image.GetDirection())
    return voxels, spacing, code


def alone(path: str) -> str:
    """Return the name of an image that is a single file, by its path relative to the folder."""
    stem = path.rsplit(".", 1)[0] if path.lower().endswith(ENDINGS) else path
    return stem.replace("/", "__")


def _tags(path: Path) -> Mapping[str, str]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with readable([str(path)]) as (name,):
        reader.SetFileName(name)
        reader.ReadImageInformation()
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


def _slice(path: str, tags: Mapping[str, str]) -> _Slice | None:
    """Return the place of a slice in the patient; None for files that have none, or several frames."""
    frames = tags.get(FRAMES, "1").strip() or "1"
    if POSITION not in tags or DIRECTIONS not in tags or frames != "1":
        return None
    position, directions = (_numbers(tags[tag]) for tag in (POSITION, DIRECTIONS))
    if len(position) != 3 or len(directions) != 6:
        return None
    return _Slice(
        path,
        tags.get(SERIES, "").strip(),
        (tags.get(ROWS, "").strip(), tags.get(COLUMNS, "").strip()),
        tuple(directions.round(3)),
        np.cross(directions[:3], directions[3:]),
        position,
        min(_numbers(tags.get(SPACING, "")), default=1.0),
        tuple(tags.get(tag, "").strip() for tag in VALUES),
    )


def _numbers(text: str) -> NDArray:
    """Return the numbers of a tag; none if it is empty, as in secondary captures, or holds anything else."""
    try:
        return np.array([float(value) for value in text.split("\\")])
    except ValueError:
        return np.array([])


def _check_places(slices: Sequence[_Slice]) -> None:
    """Raise ValueError unless the slices of a volume are at even distances."""
    places = [part.place for part in slices]
    distances = np.diff(places)
    if (distances < SAME).any():
        raise ValueError(f"{int((distances < SAME).sum())} slices of the series are at the place of another")
    if distances.max() > GAP * np.median(distances):
        raise ValueError(
            f"slices of the series are missing: they are {np.median(distances):g} mm apart, once {distances.max():g} mm"
        )


def _check_straight(slices: Sequence[_Slice]) -> None:
    """Raise ValueError unless each slice lies above the first, to within a pixel."""
    first = slices[0]
    shifts = [float(np.linalg.norm(np.cross(first.normal, part.position - first.position))) for part in slices]
    if (shift := max(shifts)) > first.pixel:
        angle = np.degrees(np.arctan2(shift, slices[shifts.index(shift)].place - first.place))
        raise ValueError(
            f"the series is sheared by {angle:.3g} degrees, as with a tilted gantry: slices lie up to {shift:.3g} mm "
            "beside the first; resample it to a grid of right angles first"
        )
