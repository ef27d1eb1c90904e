"""Folders of segmentations and the dataset.json that describes them, read by nnU-Net's readers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
)
from numpy.typing import NDArray

from .._image_size import check_size
from .._reading import read_json, reading
from ..plans.gate import check_preparation

DATASET_JSON = "dataset.json"
# an image with larger values is no label map
LARGEST_LABEL = 4095
# mm; nnU-Net's spacing of the axis that 2D images do not have
NO_AXIS = 999


@dataclass(frozen=True)
class Segmentation:
    """Label map of a case.

    Attributes:
        voxels: unsigned integers, two or three axes; axes of one voxel are left out, as they have no neighbours.
        spacing: mm, one number per axis.
        voxel_volume: mm^3; None for 2D images, whose thickness is unknown.
    """

    voxels: NDArray
    spacing: tuple[float, ...]
    voxel_volume: float | None


def dataset_json_of(folder: Path) -> Path | None:
    """Return the dataset.json beside predictions, or that of the trained model in whose folder they are."""
    folder = folder.absolute()  # of the working folder, too, the name and the folders above it count
    above = 0
    if folder.name == "validation":  # of FOLD, or of FOLD/ablation/PART
        above = 4 if folder.parent.parent.name == "ablation" else 2
    near = [folder, *list(folder.parents)[:above]]
    return next((path for place in near if (path := place / DATASET_JSON).is_file()), None)


def validation_folders(model: Path) -> list[Path]:
    """Return the validation folders of a trained model's folds; neither of fold_all nor of a renamed fold.

    Raises:
        FileNotFoundError: if there is only fold_all, which was trained on its validation cases.
    """
    folders = sorted(
        path for path in model.glob("fold_*/validation") if path.parent.name.removeprefix("fold_").isdigit()
    )
    if not folders and (model / "fold_all" / "validation").is_dir():
        raise FileNotFoundError(f"{model} has fold_all only, which was trained on its validation cases; train folds")
    return folders


def load_dataset_json(path: Path) -> dict[str, Any]:
    """Read a dataset.json, such as the copy that nnU-Net writes beside predictions.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is damaged, or names a reader that is not nnU-Net's.
    """
    with reading(path, "a dataset.json of nnU-Net", "predict again"):
        dataset = read_json(path, "a dataset.json of nnU-Net")
        dataset = {**dataset, "labels": dataset["labels"], "file_ending": dataset["file_ending"]}
    if (reader := dataset.get("overwrite_image_reader_writer")) not in (None, "None"):
        check_preparation({"image_reader_writer": reader, "configurations": {}}, str(path), "predict again")
    return dataset


def common_file_ending(folder: Path) -> str:
    """Return the common ending of a folder's files; ``.nii.gz`` is one ending.

    Raises:
        ValueError: if they have several.
    """
    endings = {"".join(p.suffixes[-2:] if p.suffix == ".gz" else p.suffixes[-1:]) for p in folder.iterdir()}
    endings = {e for e in endings if e not in ("", ".json")}
    if len(endings) != 1:
        found = ", ".join(sorted(endings)) or "no file"
        raise ValueError(
            f"{folder} must hold files of one ending, found {found}; or copy dataset.json to the predictions"
        )
    return endings.pop()


def find_reader(dataset: dict[str, Any] | None, file_ending: str, example: Path) -> BaseReaderWriter:
    """Return nnU-Net's reader of a dataset, or of a file ending if there is no dataset.json."""
    # nnU-Net prints the traceback of every reader that fails on the example and then raises a one-line error
    with redirect_stderr(StringIO()):
        if dataset is not None:
            return determine_reader_writer_from_dataset_json(dataset, str(example), verbose=False)()
        return determine_reader_writer_from_file_ending(file_ending, str(example), verbose=False)()


def read_described(reader: BaseReaderWriter, path: Path) -> tuple[NDArray, dict[str, Any]]:
    """Read a segmentation with its geometry.

    Returns:
        its voxels, three axes of nnU-Net's order (2D images have a first one of length 1), and the reader's properties,
        such as ``spacing`` in mm.

    Raises:
        ValueError: if it cannot be read, or has several channels.
    """
    try:
        segmentation, properties = reader.read_seg(str(path))
    except Exception as error:  # each reader raises its own errors
        raise ValueError(f"{path} cannot be read as a segmentation: {str(error).splitlines()[-1:]}") from error
    if len(segmentation) != 1:
        raise ValueError(f"{path} has {len(segmentation)} channels; a segmentation has one")
    return segmentation[0], properties


def read_segmentation(reader: BaseReaderWriter, path: Path) -> tuple[NDArray, tuple[float, ...]]:
    """Read a segmentation.

    Returns:
        its voxels as ``read_described``, and their spacing in mm.

    Raises:
        ValueError: as ``read_described``.
    """
    voxels, properties = read_described(reader, path)
    return voxels, tuple(map(float, properties["spacing"]))


def check_values(voxels: NDArray, known: Sequence[int], path: Path) -> None:
    """Check that a segmentation holds the labels of its dataset only: others would count as background.

    Raises:
        ValueError: if it does not; the message names the value.
    """
    unknown = np.setdiff1d(voxels, known)
    if unknown.size:
        raise ValueError(f"{path} holds the value {unknown[0]:g}, which is not a label of dataset.json: {known}")


def read_probabilities(path: Path) -> NDArray:
    """Read the probabilities, (classes, *spatial), that nnU-Net writes beside a segmentation.

    Raises:
        ValueError: if the file is damaged.
    """
    probabilities = None
    # any error of numpy or zipfile means that the file is damaged
    with suppress(Exception), path.open("rb") as file, np.load(file, allow_pickle=False) as content:
        probabilities = content["probabilities"]
    if probabilities is None:
        raise ValueError(f"{path} is truncated or holds no `probabilities`; predict again with --save_probabilities")
    return probabilities


def read_label_map(reader: BaseReaderWriter, path: Path) -> Segmentation:
    """Read a segmentation as a label map, after a look at its size.

    Raises:
        OSError: if the file is missing.
        ValueError: if it cannot be read, is too large for the memory, or holds other values than labels.
    """
    check_size([path])
    voxels, spacing = read_segmentation(reader, path)
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if not 0 <= low <= high <= LARGEST_LABEL:  # false for NaN as well
        raise ValueError(f"{path} holds values from {low:g} to {high:g}; labels are integers up to {LARGEST_LABEL}")
    labels = voxels.astype(np.uint8 if high < 256 else np.uint16)
    if not np.array_equal(labels, voxels):
        raise ValueError(f"{path} holds values that are no integers; is it a segmentation?")
    # nnU-Net's readers state that many times the pixel for the axis that 2D images lack
    is_flat = labels.shape[0] == 1 and spacing[0] >= NO_AXIS * max(spacing[1:]) * (1 - 1e-6)
    kept = [axis for axis, size in enumerate(labels.shape) if size > 1] or [0]
    squeezed = labels.reshape([labels.shape[axis] for axis in kept])
    volume = None if is_flat else float(np.prod(spacing))
    return Segmentation(squeezed, tuple(spacing[axis] for axis in kept), volume)
