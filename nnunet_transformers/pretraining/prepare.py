"""Images in nnU-Net's raw layout, or a folder of them, resampled, normalised and stored as nnU-Net stores its own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from .._files import write_json

INDEX = "index.json"
CONFIGURATION = "pretraining"
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff")
SAMPLES_PER_IMAGE = 10_000


@dataclass(frozen=True)
class Case:
    """An image: one file for each channel."""

    name: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class PreparedCase:
    """An image in the prepared folder.

    Attributes:
        name: of its ``.b2nd`` file.
        shape: (channels, *size).
    """

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, and why."""

    name: str
    reason: str


def find_cases(folder: Path) -> tuple[list[Case], list[str]]:
    """The images of a folder in nnU-Net's raw layout (``imagesTr`` and ``imagesTs``), or of a plain folder of files.

    Returns:
        the images and their channels' names.

    Raises:
        ValueError: if there is no image.
    """
    description = folder / "dataset.json"
    if description.is_file():
        dataset = json.loads(description.read_text())
        channels = list((dataset.get("channel_names") or dataset.get("modality")).values())
        ending = dataset["file_ending"]
        cases = []
        for images in (folder / "imagesTr", folder / "imagesTs"):
            for first in sorted(images.glob(f"*_0000{ending}")):
                name = first.name.removesuffix(f"_0000{ending}")
                cases.append(Case(name, tuple(str(images / f"{name}_{c:04d}{ending}") for c in range(len(channels)))))
    else:
        channels = ["image"]
        files = sorted(p for p in folder.rglob("*") if p.name.lower().endswith(FILE_ENDINGS))
        cases = [Case(str(p.relative_to(folder)).replace("/", "__").split(".")[0], (str(p),)) for p in files]
    if not cases:
        raise ValueError(
            f"no image in {folder}: it has neither imagesTr with the files that dataset.json describes nor files "
            f"ending in {', '.join(FILE_ENDINGS)}"
        )
    return cases, channels


@dataclass(frozen=True)
class _Facts:
    spacing: tuple[float, ...]
    intensities: list[list[float]]


def _inspect(case: Case) -> _Facts | Skipped:
    """Spacing and a sample of the foreground's intensities of each channel."""
    try:
        for file in case.files:
            _check_complete(file)
        reader = determine_reader_writer_from_file_ending(_ending(case.files[0]), case.files[0], verbose=False)()
        image, properties = reader.read_images(case.files)
        if not np.isfinite(image).all():
            return Skipped(case.name, "holds NaN or infinity")
        for index, channel in enumerate(image):
            if channel.min() == channel.max():
                return Skipped(case.name, f"channel {index} is constant ({channel.min():g})")
        rng = np.random.default_rng(0)
        intensities = []
        for channel in image:
            foreground = channel[channel != channel.min()]
            picked = rng.choice(foreground, min(SAMPLES_PER_IMAGE, foreground.size), replace=False)
            intensities.append(picked.astype(float).tolist())
        return _Facts(tuple(float(s) for s in properties["spacing"]), intensities)
    except Exception as error:  # whatever a reader makes of a broken file
        return Skipped(case.name, f"cannot be read: {str(error).strip().splitlines()[0] if str(error) else error!r}")


def _check_complete(file: str) -> None:
    """Read a compressed file to its end: SimpleITK gives what there is of a truncated one, the rest zero."""
    if file.endswith(".gz"):
        with gzip.open(file) as stream:
            while stream.read(2**20):
                pass


def _ending(file: str) -> str:
    return next((e for e in FILE_ENDINGS if file.lower().endswith(e)), Path(file).suffix)


def _intensity_properties(samples: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """What nnU-Net's CT normalisation wants to know of each channel."""
    properties = {}
    for channel, values in enumerate(samples):
        low, high = np.percentile(values, (0.5, 99.5))
        properties[str(channel)] = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "median": float(np.median(values)),
            "min": float(values.min()),
            "max": float(values.max()),
            "percentile_00_5": float(low),
            "percentile_99_5": float(high),
        }
    return properties


def _plans(
    channels: Sequence[str], spacing: Sequence[float], intensities: dict, patch_size: Sequence[int], reader: str
) -> dict[str, Any]:
    """The part of a plan that nnU-Net's preprocessor reads."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    schemes = [get_normalization_scheme(channel).__name__ for channel in channels]
    configuration = {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 1,
        "patch_size": list(patch_size),
        "spacing": list(spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": [False] * len(channels),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    return {
        "dataset_name": "pretraining",
        "plans_name": "pretraining",
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": intensities,
        "configurations": {CONFIGURATION: configuration},
    }


def _store(case: Case, plans: dict[str, Any], folder: Path) -> PreparedCase | Skipped:
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    try:
        preprocessor = DefaultPreprocessor(verbose=False)
        data, seg, properties = preprocessor.run_case(list(case.files), None, manager, configuration, {"labels": {}})
    except Exception as error:  # as in _inspect
        return Skipped(case.name, f"cannot be preprocessed: {error}")
    data = data.astype(np.float32)
    blocks, chunks = comp_blosc2_params(data.shape, tuple(configuration.patch_size))
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case.name), chunks, blocks)
    return PreparedCase(case.name, tuple(data.shape))


def validation_cases(source: Path, fold: int) -> list[str]:
    """The cases that a fold of nnU-Net's cross-validation validates on.

    Args:
        source: a dataset in nnU-Net's raw layout.
        fold: of ``splits_final.json`` in the preprocessed folder, or, before that is written, of nnU-Net's default.

    Raises:
        ValueError: if there is no such fold, or ``source`` is no dataset with labels.
    """
    names = sorted(p.name.split(".")[0] for p in (source / "labelsTr").glob("*"))
    if not names:
        raise ValueError(f"{source} has no labelsTr, so that there are no folds; leave --fold out")
    splits = (
        Path(nnUNet_preprocessed) / source.resolve().name / "splits_final.json"
        if nnUNet_preprocessed.is_set()
        else None
    )
    if splits is not None and splits.is_file():
        folds = json.loads(splits.read_text())
    else:
        folds = generate_crossval_split(names, seed=12345, n_splits=5)
    if not 0 <= fold < len(folds):
        raise ValueError(f"there is no fold {fold}; folds are 0 to {len(folds) - 1}")
    return list(folds[fold]["val"])


def prepare(
    source: Path,
    output: Path,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] = (96, 96, 96),
    processes: int = 1,
    left_out: Collection[str] = (),
) -> tuple[list[PreparedCase], list[Skipped]]:
    """Fingerprint, resample, normalise and store images.

    Args:
        source: a dataset in nnU-Net's raw layout, labels unused, or a folder of one-channel images.
        output: folder to write; must be new or empty.
        spacing: mm per voxel and axis to resample to; the median of the images by default.
        patch_size: about the crops that will be read, for the layout of the files.
        processes: images at a time.
        left_out: names of images not to take, such as those that a fold validates on.

    Returns:
        what was stored, and what was not and why.

    Raises:
        ValueError: if there is no readable image, or ``spacing`` has another number of axes than the images.
        FileExistsError: if ``output`` holds files.
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; remove it or choose another folder")
    cases, channels = find_cases(source)
    cases = [case for case in cases if case.name not in left_out]
    with ProcessPoolExecutor(processes) as pool:
        facts = list(pool.map(_inspect, cases))
        skipped = [f for f in facts if isinstance(f, Skipped)]
        readable = [(c, f) for c, f in zip(cases, facts, strict=True) if isinstance(f, _Facts)]
        if not readable:
            raise ValueError(f"none of the {len(cases)} images in {source} can be used; the first: {skipped[0]}")
        median = np.median([f.spacing for _, f in readable], axis=0).tolist()
        if spacing is not None and len(spacing) != len(median):
            raise ValueError(f"--spacing {tuple(spacing)} must have {len(median)} numbers, the images' axes")
        samples = [np.concatenate([f.intensities[c] for _, f in readable]) for c in range(len(channels))]
        first = readable[0][0].files[0]
        reader = determine_reader_writer_from_file_ending(_ending(first), first, verbose=False).__name__
        plans = _plans(channels, spacing or median, _intensity_properties(samples), patch_size, reader)
        output.mkdir(parents=True, exist_ok=True)
        stored: list[PreparedCase] = []
        arguments = zip(*((c, plans, output) for c, _ in readable), strict=True)
        for result in _progress(pool.map(_store, *arguments), len(readable)):
            (stored if isinstance(result, PreparedCase) else skipped).append(result)
    if not stored:
        raise ValueError(f"none of the images in {source} can be preprocessed; the first: {skipped[0]}")
    index = {
        "cases": [asdict(case) for case in stored],
        "skipped": [asdict(case) for case in skipped],
        "channels": channels,
        "spacing": plans["configurations"][CONFIGURATION]["spacing"],
        "normalization": plans["configurations"][CONFIGURATION]["normalization_schemes"],
    }
    write_json(index, output / INDEX)
    return stored, skipped


def _progress(results: Iterator[Any], total: int) -> Iterator[Any]:
    from rich.progress import track

    return track(results, description="preparing", total=total)
