"""Check the images of a case: anything on which nnU-Net would fail or silently go wrong gets a clear message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from .._image_size import check_size
from .._orientation import displacement, orientation, reoriented_by
from .._voxels import check_complete, count_non_finite
from ..inference.cases import check_axes, check_numbers
from ..plans.planned import channel_names
from .load import LoadedModel

# spacings within this factor of the training images' get no remark
SPACING_TOLERANCE = 2.0


@dataclass(frozen=True)
class CheckedCase:
    """A case that can be predicted.

    Attributes:
        shape: voxels per axis, in the order of the array.
        spacing: mm per voxel, in the same order.
        remarks: warnings for the user.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    remarks: tuple[str, ...] = ()


def check_case(files: Sequence[Path], loaded: LoadedModel, others: Sequence[LoadedModel] = ()) -> CheckedCase:
    """Read a case and check it before anything is computed.

    Args:
        files: images of the case, one per channel.
        loaded: model that will predict it.
        others: further models of an ensemble, which take the same channels, but may be 3D where the first is not.

    Raises:
        ValueError: if the case cannot be predicted; the message gives the reason.
    """
    dataset_json, plans = loaded.predictor.dataset_json, loaded.predictor.plans_manager
    channels = channel_names(dataset_json)
    check_numbers(files, channels, loaded.file_ending)
    check_size(files)
    check_axes(files)
    reader = plans.image_reader_writer_class()
    images, properties = [], []
    for path in files:
        try:
            check_complete(path)
            bad = count_non_finite(path)
            with redirect_stdout(StringIO()):
                image, found = reader.read_images([str(path)])
        except Exception as error:  # each reader raises its own errors
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            raise ValueError(f"{path.name} cannot be read: {reason.strip()}") from error
        bad = bad or int(image.size - np.isfinite(image).sum())
        if bad:
            raise ValueError(
                f"{path.name} holds NaN or infinity in {bad} voxels; replace them by the background's value"
            )
        images.append(image)
        properties.append(found)
    count = sum(image.shape[0] for image in images)
    if count != len(channels):
        last = int(files[-1].name.removesuffix(loaded.file_ending)[-4:])
        missing = ", ".join(f"_{i:04d} ({channels[i]})" for i in range(last + 1, len(channels)))
        hint = f"missing {missing}" if count < len(channels) else "more than it was trained with"
        raise ValueError(f"{count} channels, the model takes {len(channels)} ({', '.join(channels)}): {hint}")
    for path, image, found in zip(files, images, properties, strict=True):
        _check_geometry(path, image, found, images[0], properties[0], files[0])
    is_turned = reoriented_by(loaded.predictor.plans_manager.image_reader_writer_class) is not None
    # of turned channels the grids were compared as they are read
    apart = [] if is_turned else [_place_remark(path, files[0]) for path in files[1:]]
    shape, spacing = images[0].shape[1:], tuple(float(s) for s in properties[0]["spacing"])
    for model in (loaded, *others):
        _check_dimensions(shape, properties[0], model)
    constant = [path.name for path, image in zip(files, images, strict=True) if image.min() == image.max()]
    if len(constant) == len(files):
        raise ValueError(f"every voxel is {float(images[0].flat[0]):g}: there is nothing in the image to segment")
    remarks = [f"{name} is constant" for name in constant] + [remark for remark in apart if remark]
    remarks += _slice_remarks(shape, loaded) + _spacing_remarks(spacing, loaded) + _orientation_remarks(files, loaded)
    return CheckedCase(tuple(shape), spacing, tuple(remarks))


def _check_geometry(
    path: Path,
    image: np.ndarray,
    found: Mapping[str, Any],
    other: np.ndarray,
    properties: Mapping[str, Any],
    first: Path,
) -> None:
    if image.shape[1:] != other.shape[1:]:
        sizes = ["x".join(map(str, i.shape[1:])) for i in (image, other)]
        raise ValueError(f"{path.name} has {sizes[0]} voxels, {first.name} {sizes[1]}; channels need the same grid")
    if not np.allclose(found["spacing"], properties["spacing"], rtol=1e-4):
        raise ValueError(f"{path.name} and {first.name} differ in spacing; channels need the same grid")


def _place_remark(path: Path, first: Path) -> str:
    """Say if a channel lies elsewhere than the first, which nnU-Net takes voxel by voxel; empty if it does not."""
    if not (distance := displacement(path, first)):
        return ""
    return f"{path.name} lies up to {distance:.3g} mm from {first.name} by its header; resample it onto that grid first"


def _check_dimensions(shape: Sequence[int], properties: Mapping[str, Any], loaded: LoadedModel) -> None:
    patch = loaded.predictor.configuration_manager.patch_size
    if min(shape) == 0:
        raise ValueError(f"the image is empty: {'x'.join(map(str, shape))} voxels")
    is_flat = len(properties.get("sitk_stuff", {}).get("spacing", shape)) == 2 or shape[0] == 1
    if len(patch) == 3 and is_flat:
        raise ValueError(f"a 2D image ({'x'.join(map(str, shape))} voxels), the model takes 3D images")


def _model_axes(loaded: LoadedModel) -> list[int]:
    """Return the axes of an image that the model's patch has; a 2D model leaves the other one as it is."""
    predictor = loaded.predictor
    return sorted(predictor.plans_manager.transpose_forward[-len(predictor.configuration_manager.patch_size) :])


def _slice_remarks(shape: Sequence[int], loaded: LoadedModel) -> list[str]:
    """Say if a 2D model gets a single slice as many lines."""
    plane = [shape[axis] for axis in _model_axes(loaded)]
    count = int(np.prod(shape)) // int(np.prod(plane))
    if count == 1 or min(plane) > 1:
        return []
    return [
        f"the model segments {count} slices of {'x'.join(map(str, plane))} voxels, as the image is flat along another "
        "axis than the training images; turn it first"
    ]


def _spacing_remarks(spacing: Sequence[float], loaded: LoadedModel) -> list[str]:
    known = np.array(loaded.fingerprint.get("spacings", ()), dtype=float)
    if not len(known) or known.shape[1] != len(spacing):
        return []
    axes = _model_axes(loaded)
    spacing, known = [spacing[axis] for axis in axes], known[:, axes]
    low, high = known.min(0) / SPACING_TOLERANCE, known.max(0) * SPACING_TOLERANCE
    if ((spacing < low) | (spacing > high)).any():
        texts = ["x".join(f"{s:.3g}" for s in values) for values in (spacing, known.min(0), known.max(0))]
        return [
            f"spacing {texts[0]} mm is far from the training images', {texts[1]} to {texts[2]}; the image is resampled"
        ]
    return []


def _orientation_remarks(files: Sequence[Path], loaded: LoadedModel) -> list[str]:
    found, known = orientation(files[0]), loaded.model.orientations
    is_turned = reoriented_by(loaded.predictor.plans_manager.image_reader_writer_class) is not None
    if not found or not known or found in known or is_turned:
        return []
    return [
        f"axes are stored as {found}, the training images' as {', '.join(known)}; nnU-Net does not reorient images, so "
        "reorient it first"
    ]
