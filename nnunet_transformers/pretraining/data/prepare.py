"""Preparation of images: resampling, normalisation and storage by nnU-Net's preprocessor, image by image."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ... import __version__
from ..._lease import lease
from ..._workers import Engine, LocalProcesses, WorkerDied
from ...plans.gate import check_preparation
from .cases import ImageCase, Source, check_source, find_cases
from .folder_state import LEASE, FolderState
from .index import PARTS, PreparedCase, Skipped
from .inspection import Facts, Inspection, inspect_case
from .intensities import pooled
from .own_plan import CONFIGURATION, check_normalization, chosen_spacing, own_plan
from .storing import FLAT, Preparation, Storing, store_case
from .summary import Summary

# normalisations without statistics over images
UNFITTED = ("rescale_to_0_1", "nonorm")
DIED = "killed the process that read it, most often because memory ran out: use fewer --processes and --retry-failed"


def prepare(source: Path, output: Path, **options: Any) -> tuple[list[PreparedCase], list[Skipped]]:
    """Prepare images as ``prepare_folder`` does, which has the options.

    Returns:
        the stored images, and the skipped images with reasons, sorted by name.

    Examples:
        >>> stored, skipped = prepare(Path("Dataset004_Hippocampus"), Path("prepared"), spacing=(1, 1, 1))
        >>> images = PreparedImages(Path("prepared"))
        >>> images.crop((32, 32, 32), np.random.default_rng(0)).shape
        torch.Size([1, 32, 32, 32])
    """
    summary = prepare_folder(source, output, **options)
    return list(summary.stored), list(summary.skipped)


def prepare_folder(
    source: Path,
    output: Path,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] = (96, 96, 96),
    processes: int = 1,
    left_out: Collection[str] = (),
    planned: tuple[Mapping[str, Any], str] | None = None,
    normalization: str | None = None,
    trust: bool = False,
    intensity_range: tuple[float, float] | None = None,
    reorient: bool = False,
    include_test: bool = False,
    retry_failed: bool = False,
    longest: int | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Inspect, resample, normalise and store images, one after the other.

    Each image is stored when it is done, so that a run that was interrupted goes on when it is started again, and
    images that were added to ``source`` since are added. If ``source`` mixes 2D images and volumes, they go into the
    subfolders ``2d`` and ``3d``.

    Worker processes import the calling script, so a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        source: dataset in nnU-Net's raw layout, whose labels are ignored, or folder of images.
        output: folder to write; new, empty, or prepared by the same options.
        spacing: mm per voxel and axis to resample to; by default the median of the images.
        patch_size: approximate size of the crops that will be read, which determines the layout of the files.
        processes: number of worker processes.
        left_out: names of images to leave out, such as the validation cases of a fold.
        planned: plan and name of its configuration, whose order of axes, spacing, normalisation and intensity
            statistics prepare the images as for training from this plan.
        normalization: nnU-Net's name of a normalisation, such as ``rescale_to_0_1`` or ``nonorm``, for images without
            channel names.
        trust: prepare by whatever functions ``planned`` names.
        intensity_range: lowest and highest intensity of CT, to which others are clipped before nnU-Net's CT
            normalisation; by default the percentiles of the foreground.
        reorient: bring volumes to RAS.
        include_test: take a dataset's test images too.
        retry_failed: try skipped images again.
        longest: shrink 2D images so that their longest side has at most this many pixels, and average their channels.
            They are neither cropped nor resampled; a JPEG is decoded no finer than is needed.
        engine: what runs the work; by default processes of this machine.

    Raises:
        ValueError: if there is no readable image, ``spacing`` and the images differ in their number of axes,
            ``normalization`` is unknown, options contradict each other, the dataset or what ``output`` was prepared
            with, ``planned`` names other code than nnU-Net's, or the name of an image leads out of ``output``.
        FileExistsError: if ``output`` holds other files.
        FolderInUse: if another process prepares ``output``.
        RuntimeError: if all worker processes are killed.
    """
    if planned is not None and not trust:
        check_preparation(planned[0], f"the plan {planned[0].get('plans_name')}")
    check_source(source)
    with lease(output, _lease_file(output.absolute())):
        state = FolderState(output)
        for preparation in state.preparations if not trust else ():
            check_preparation(preparation.plans, f"the plan of {output}")
        found = find_cases(source, include_test, state.names)
        _check_options(source, found, planned is not None, normalization, intensity_range, reorient)
        if longest is not None:
            _check_longest(longest, planned is not None or spacing is not None or reorient, found.channels)
        settings = {
            "spacing": None if spacing is None else [float(s) for s in spacing],
            "patch size": list(patch_size),
            "normalization": normalization,
            "intensity range": None if intensity_range is None else list(intensity_range),
            "reorient": reorient,
            "include test": include_test,
            "images left out": sorted(left_out),
            "plan": None if planned is None else _fingerprint(*planned),
            **({} if longest is None else {"longest": longest}),
        }
        cases = [case for case in found.cases if case.name not in left_out]
        state.begin(source.resolve(), settings, __version__)
        remaining = state.remaining(cases, source.resolve(), retry_failed)
        reader = found.reader if planned is None else planned[0].get("image_reader_writer")
        # also after an interruption: writes down what was done
        with closing(state), LocalProcesses(processes) as local:
            engine = engine or local
            if not state.preparations and planned is not None:
                state.add_preparations([Preparation.planned(*planned, found.channels)])
            if not state.preparations and longest is not None and normalization in UNFITTED:
                # whose statistics are of each image, so that none has to be read twice
                state.add_preparations([_own_preparation([normalization], [{}], patch_size, longest)])
            if not state.preparations:
                count = None if found.channels is None else len(found.channels)
                inspection = Inspection(reader, reorient, intensity_range, longest, count)
                remaining = _inspect(state, remaining, inspection, engine)
                facts = {case: state.facts[case.key] for case in remaining}
                if not facts:
                    raise _unusable(state, source)
                state.add_preparations(
                    _own_preparations(
                        facts, found, spacing, patch_size, normalization, intensity_range, source, longest
                    )
                )
            storing = Storing(output, state.preparations, reader, reorient)
            before = len(state.stored)
            _store(state, remaining, storing, engine)
            if not state.stored:
                raise _unusable(state, source)
            state.finish(found.ignored)
        return Summary.of(state, cases, found, len(state.stored) - before)


def _lease_file(output: Path) -> Path:
    """Return the lease's file: beside the folder, or in it where nothing can be written beside it, such as a mount."""
    beside = output.with_name(f"{output.name}.lease")
    return output / LEASE if output.is_dir() and not os.access(output.parent, os.W_OK) else beside


def _check_options(
    source: Path,
    found: Source,
    is_planned: bool,
    normalization: str | None,
    intensity_range: tuple[float, float] | None,
    reorient: bool,
) -> None:
    if normalization is not None:
        if found.channels is not None or is_planned:
            raise ValueError(
                f"--normalization contradicts {source}'s dataset.json or the plan, which specify it for each channel"
            )
        check_normalization(normalization)
    if intensity_range is not None:
        if is_planned:
            raise ValueError("--intensity-range contradicts the plan, which has the range of its own images")
        if normalization not in (None, "ct"):
            raise ValueError(f"--intensity-range is part of the normalization ct, not of {normalization}")
        if not intensity_range[0] < intensity_range[1]:
            raise ValueError(f"--intensity-range must be two increasing numbers, got {intensity_range}")
    if reorient and is_planned:
        raise ValueError("--reorient contradicts the plan, whose reader decides on the orientation")


def _check_longest(longest: int, is_contradicted: bool, channels: Sequence[str] | None) -> None:
    if longest < 1:
        raise ValueError(f"--longest must be a number of pixels, got {longest}")
    if is_contradicted or (channels is not None and len(channels) != 1):
        raise ValueError(
            "--longest shrinks pictures of one channel: leave out --spacing, --reorient and the plan, and datasets of "
            "several channels"
        )


def _fingerprint(plans: Mapping[str, Any], configuration: str) -> str:
    content = json.dumps([plans, configuration], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _unusable(state: FolderState, source: Path) -> ValueError:
    name, reason = next((line["skipped"], line["reason"]) for line in state.skipped.values())
    return ValueError(f"none of the {len(state.skipped)} images in {source} can be used; the first: {name}: {reason}")


def _inspect(state: FolderState, cases: list[ImageCase], settings: Inspection, engine: Engine) -> list[ImageCase]:
    """Inspect the images that were not yet; return the usable ones."""
    left = [case for case in cases if not _is_inspected(state.facts.get(case.key), settings)]
    for case, result in _progress(engine.run(partial(inspect_case, settings), left), "inspecting", len(left)):
        if isinstance(result, Facts):
            state.add_facts(case, result)
        else:
            state.add_skipped(case, Skipped(case.name, DIED) if isinstance(result, WorkerDied) else result)
    return [case for case in cases if case.key in state.facts and case.key not in state.skipped]


def _is_inspected(facts: Facts | None, settings: Inspection) -> bool:
    """Whether an image is known, with the channels that dataset.json, which may have been corrected since, names."""
    return facts is not None and settings.channels in (None, len(facts.intensities))


def _store(state: FolderState, cases: list[ImageCase], settings: Storing, engine: Engine) -> None:
    """Preprocess and store images."""
    for case, result in _progress(engine.run(partial(store_case, settings), cases), "preparing", len(cases)):
        if isinstance(result, WorkerDied):
            state.add_skipped(case, Skipped(case.name, DIED))
        elif isinstance(result, Skipped):
            state.add_skipped(case, result)
        else:
            state.add_stored(case, result)


def _own_preparations(
    facts: Mapping[ImageCase, Facts],
    found: Source,
    spacing: Sequence[float] | None,
    patch_size: Sequence[int],
    normalization: str | None,
    window: tuple[float, float] | None,
    source: Path,
    longest: int | None,
) -> list[Preparation]:
    """Return how 2D images and volumes are prepared; in folders of their own if there are both."""
    preparations = []
    kinds = [kind for kind in PARTS if any(fact.is_flat == (kind == FLAT) for fact in facts.values())]
    for kind in kinds:
        images = [fact for fact in facts.values() if fact.is_flat == (kind == FLAT)]
        usual = Counter(len(fact.intensities) for fact in images).most_common(1)[0][0]
        channels = found.channels or [normalization or "image"] * usual
        images = [fact for fact in images if len(fact.intensities) == len(channels)]
        if not images:
            continue
        intensities = [pooled([fact.intensities[channel] for fact in images]) for channel in range(len(channels))]
        if longest is not None:
            preparations.append(_own_preparation(channels, intensities, patch_size, longest, window))
            continue
        readers = Counter(fact.reader for fact in images if fact.reader)
        plans = own_plan(
            channels,
            chosen_spacing([fact.spacing for fact in images], spacing, kind == FLAT, source),
            intensities,
            tuple(patch_size)[-2:] if kind == FLAT else patch_size,
            readers.most_common(1)[0][0] if readers else "SimpleITKIO",
            float(np.median([fact.cropped_share for fact in images])),
            window,
        )
        part = kind if len(kinds) > 1 else ""
        preparations.append(Preparation(plans, CONFIGURATION, tuple(channels), (kind,), part))
    if not preparations:
        raise ValueError(
            f"the images of {source} have {usual} channels, its dataset.json names {len(channels)} "
            f"({', '.join(channels)}): correct dataset.json, or give the folder of the images"
        )
    return preparations


def _own_preparation(
    channels: Sequence[str],
    intensities: Sequence[Mapping[str, float]],
    patch_size: Sequence[int],
    longest: int,
    window: tuple[float, float] | None = None,
) -> Preparation:
    """Return how 2D images are prepared that are shrunk to a longest side."""
    # normalised as a whole, black borders included, which are not cropped either
    patch, reader = tuple(patch_size)[-2:], NaturalImage2DIO.__name__
    plans = own_plan(channels, (1.0, 1.0), intensities, patch, reader, 1.0, window, longest)
    return Preparation(plans, CONFIGURATION, tuple(channels), (FLAT,))


class _Rate(TextColumn):
    """Images per second since the start."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        self.text_format = f"{task.speed:.2g}/s" if task.speed else ""
        return super().render(task)


def _progress(results: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """Show how many images are done, how fast, and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=300, disable=total == 0) as progress:
        yield from progress.track(results, total=total, description=what)
