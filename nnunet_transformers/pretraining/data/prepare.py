"""Preparation of images: resampling, normalisation and storage by nnU-Net's preprocessor."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import (
    channel_name_to_normalization_mapping,
    get_normalization_scheme,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from rich.progress import track

from ..._atomic import new_folder
from ..._image_size import check_size
from ..._paths import inside
from ..._processes import exit_with_parent
from ...plans.gate import check_preparation
from .cases import FILE_ENDINGS, ImageCase, find_cases
from .index import INDEX, PreparedCase, PreparedIndex, Skipped

CONFIGURATION = "pretraining"
# number of sampled intensities over all images, as in nnU-Net's fingerprint
SAMPLES = 10_000_000
# value whose square, summed over the voxels of an image, single precision can hold, in which nnU-Net normalises
LARGEST = 1e12


@dataclass(frozen=True)
class _Fingerprint:
    """Spacing in mm, and sampled intensities above each channel's minimum, (channels, samples)."""

    spacing: tuple[float, ...]
    intensities: NDArray


def _inspect(case: ImageCase, samples: int) -> _Fingerprint | Skipped:
    """Read an image and compute its fingerprint."""
    try:
        check_size(case.files)
        for file in case.files:
            _check_complete(file)
        reader = determine_reader_writer_from_file_ending(_ending(case.files[0]), case.files[0], verbose=False)()
        image, properties = reader.read_images(case.files)
        if not np.isfinite(image).all():
            return Skipped(case.name, "holds NaN or infinity")
        for index, channel in enumerate(image):
            if channel.min() == channel.max():
                return Skipped(case.name, f"channel {index} is constant ({channel.min():g})")
            largest = max(abs(float(channel.min())), abs(float(channel.max())))
            if largest > LARGEST:
                return Skipped(case.name, f"channel {index} holds values up to {largest:g}, which overflow")
        rng = np.random.default_rng(0)
        intensities = [rng.choice(channel[channel != channel.min()], samples) for channel in image]
        return _Fingerprint(tuple(float(s) for s in properties["spacing"]), np.array(intensities, dtype=np.float32))
    except Exception as error:  # each reader raises its own errors for broken files
        return Skipped(case.name, f"cannot be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def _check_complete(file: str) -> None:
    """Read a file to its end: SimpleITK fills the missing part of a truncated one with zeros."""
    if file.endswith(".gz"):
        with gzip.open(file) as stream:
            while stream.read(2**20):
                pass
    elif file.endswith(".nii"):
        np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]


def _ending(file: str) -> str:
    return next((e for e in FILE_ENDINGS if file.lower().endswith(e)), Path(file).suffix)


def _intensity_properties(samples: NDArray) -> dict[str, dict[str, float]]:
    """Return the statistics of each channel that nnU-Net's CT normalisation needs."""
    properties = {}
    for channel, values in enumerate(samples):
        low, high = np.percentile(values, (0.5, 99.5))
        properties[str(channel)] = {
            "mean": float(values.mean(dtype=np.float64)),
            "std": float(values.std(dtype=np.float64)),
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
    """Return the part of a plan that nnU-Net's preprocessor reads."""
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


def _store(case: ImageCase, plans: dict[str, Any], name: str, folder: Path) -> PreparedCase | Skipped:
    """Preprocess an image by configuration ``name`` of a plan and store it."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    try:
        preprocessor = DefaultPreprocessor(verbose=False)
        data, seg, properties = preprocessor.run_case(list(case.files), None, manager, configuration, {"labels": {}})
        data = data.astype(np.float32)
        if not np.isfinite(data).all():
            return Skipped(case.name, "holds NaN or infinity after resampling and normalisation")
        blocks, chunks = comp_blosc2_params(data.shape, tuple(configuration.patch_size))
        nnUNetDatasetBlosc2.save_case(data, seg, properties, str(inside(folder, case.name)), chunks, blocks)
    except Exception as error:  # as in _inspect
        return Skipped(case.name, f"cannot be preprocessed: {_first_line(error)}")
    return PreparedCase(case.name, tuple(data.shape))


def prepare(
    source: Path,
    output: Path,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] = (96, 96, 96),
    processes: int = 1,
    left_out: Collection[str] = (),
    planned: tuple[Mapping[str, Any], str] | None = None,
    normalization: str | None = None,
    trust: bool = False,
) -> tuple[list[PreparedCase], list[Skipped]]:
    """Fingerprint, resample, normalise and store images.

    Worker processes import the calling script, so a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        source: dataset in nnU-Net's raw layout, whose labels are ignored, or folder of images.
        output: folder to write; must be new or empty.
        spacing: mm per voxel and axis to resample to; by default the median of the images.
        patch_size: approximate size of the crops that will be read, which determines the layout of the files.
        processes: number of worker processes.
        left_out: names of images to leave out, such as the validation cases of a fold.
        planned: plan and name of its configuration, whose order of axes, spacing, normalisation and intensity
            statistics prepare the images as for training from this plan.
        normalization: nnU-Net's name of a normalisation, such as ``rescale_to_0_1`` or ``nonorm``, for images without
            channel names.
        trust: prepare by whatever functions ``planned`` names.

    Returns:
        the stored images, and the skipped images with reasons.

    Raises:
        ValueError: if there is no readable image, ``spacing`` and the images differ in their number of axes, or
            ``normalization`` is unknown or also specified by ``source`` or ``planned``, ``planned`` names other code
            than nnU-Net's, or the name of an image leads out of ``output``.
        FileExistsError: if ``output`` holds files.
        RuntimeError: if a worker process was killed; ``output`` is then not written.

    Examples:
        >>> stored, skipped = prepare(Path("Dataset004_Hippocampus"), Path("prepared"), spacing=(1, 1, 1))
        >>> images = PreparedImages(Path("prepared"))
        >>> images.crop((32, 32, 32), np.random.default_rng(0)).shape
        torch.Size([1, 32, 32, 32])
    """
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; remove it or choose another folder")
    if planned is not None and not trust:
        check_preparation(planned[0], f"the plan {planned[0].get('plans_name')}")
    cases, channels = find_cases(source)
    if normalization is not None:
        _check_normalization(normalization, source, channels is not None or planned is not None)
    cases = [case for case in cases if case.name not in left_out]
    with _workers(processes) as pool:
        samples = max(100, min(10_000, SAMPLES // len(cases)))
        facts = dict(zip(cases, pool.map(_inspect, cases, [samples] * len(cases)), strict=True))
        skipped = [fact for fact in facts.values() if isinstance(fact, Skipped)]
        readable = {case: fact for case, fact in facts.items() if isinstance(fact, _Fingerprint)}
        if not readable:
            raise ValueError(f"none of the {len(cases)} images in {source} can be used; the first: {skipped[0]}")
        numbers = [len(fact.intensities) for fact in readable.values()]
        usual = len(channels) if channels else max(set(numbers), key=numbers.count)
        for case in [case for case, fact in readable.items() if len(fact.intensities) != usual]:
            skipped.append(Skipped(case.name, f"has {len(readable.pop(case).intensities)} channels, others {usual}"))
        channels = channels or [normalization or "image"] * usual
        if planned is None:
            plans, name = _own_plans(readable, channels, spacing, patch_size, source), CONFIGURATION
        else:
            plans, name = {**planned[0]}, planned[1]
        with new_folder(output) as folder:
            stored: list[PreparedCase] = []
            arguments = zip(*((case, plans, name, folder) for case in readable), strict=True)
            for result in _progress(pool.map(_store, *arguments), len(readable)):
                (stored if isinstance(result, PreparedCase) else skipped).append(result)
            if not stored:
                raise ValueError(f"none of the images in {source} can be preprocessed; the first: {skipped[0]}")
            configuration = PlansManager(plans).get_configuration(name)
            PreparedIndex(
                cases=tuple(stored),
                skipped=tuple(skipped),
                channels=tuple(channels),
                spacing=tuple(configuration.spacing),
                normalization=tuple(configuration.normalization_schemes),
                plans=plans,
                configuration=name,
            ).save(folder / INDEX)
    return stored, skipped


@contextmanager
def _workers(processes: int) -> Iterator[Executor]:
    """Spawn worker processes: forked ones can crash, because blosc2 and torch run threads."""
    try:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=exit_with_parent) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, most often because memory ran out: use fewer --processes. (A script must "
            "call prepare under `if __name__ == '__main__':`.)"
        ) from error


def _check_normalization(name: str, source: Path, is_specified: bool) -> None:
    if is_specified:
        raise ValueError(
            f"--normalization contradicts {source}'s dataset.json or the plan, which specify it for each channel"
        )
    if name not in channel_name_to_normalization_mapping:
        known = ", ".join(channel_name_to_normalization_mapping)
        raise ValueError(f"nnU-Net has no normalization {name!r}; it has {known}")


def _own_plans(
    readable: Mapping[ImageCase, _Fingerprint],
    channels: Sequence[str],
    spacing: Sequence[float] | None,
    patch_size: Sequence[int],
    source: Path,
) -> dict[str, Any]:
    median = np.median([fact.spacing for fact in readable.values()], axis=0).tolist()
    if spacing is not None and len(spacing) != len(median):
        raise ValueError(f"--spacing {tuple(spacing)} must have {len(median)} numbers, the axes of {source}")
    intensities = np.concatenate([fact.intensities for fact in readable.values()], axis=1)
    first = next(iter(readable)).files[0]
    reader = determine_reader_writer_from_file_ending(_ending(first), first, verbose=False).__name__
    return _plans(channels, spacing or median, _intensity_properties(intensities), patch_size, reader)


def _progress(results: Iterable[Any], total: int) -> Iterable[Any]:
    return track(results, description="preparing", total=total)
