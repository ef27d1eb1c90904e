"""Predict a folder with a package: nnU-Net's prediction case by case, so that a bad case does not stop the others."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from nnunetv2.ensembling.ensemble import merge_files

from .._atomic import replacing
from .._device import find_device
from .._memory import available_bytes
from .._processes import available_cores
from ..formats import Source
from ..formats.sockets import Interface
from ..inference.sources import open_source
from .estimate import exceeding_bytes
from .inputs import CheckedCase, check_case
from .load import LoadedModel


@dataclass(frozen=True)
class CaseResult:
    """Outcome of a case.

    Attributes:
        name: name of the case, or of a file that belongs to no case.
        seconds: time of its prediction.
        problem: reason why it could not be predicted; empty if it was.
        remarks: warnings for the user.
    """

    name: str
    seconds: float = 0.0
    problem: str = ""
    remarks: tuple[str, ...] = ()


def select_device(name: str) -> torch.device:
    """Return a device by its name, and set as many threads as nnU-Net's command does; see ``_device.find_device``."""
    device = find_device(name)
    torch.set_num_threads(1 if device.type == "cuda" else available_cores())
    return device


def predict_folder(
    models: Sequence[LoadedModel],
    images: Path,
    output: Path,
    save_probabilities: bool = False,
    report: Callable[[CaseResult], None] = lambda result: None,
    interfaces: Sequence[Interface] = (),
) -> list[CaseResult]:
    """Predict every case of a folder.

    Args:
        models: result of ``load_package``; the probabilities of several models are averaged.
        images: folder of images with nnU-Net's names, CASE_0000.ending, or of DICOM series.
        output: folder for the segmentations, created if it is missing; each file is written whole or not at all.
        save_probabilities: write CASE.npz and CASE.pkl as well, as nnU-Net does.
        report: called after each case.
        interfaces: of an algorithm on grand-challenge.org, if ``images`` may be the input of a run of it.

    Returns:
        the outcome of each case, and of each file that belongs to no case.

    Raises:
        FileNotFoundError, ValueError: if there is no image, or the output cannot be written.
        ModuleNotFoundError: if the images are DICOM and the extra ``[dicom]`` is missing.
    """
    source = open_source(images, models[0].predictor.dataset_json, interfaces)
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise ValueError(f"{output} is not writable; make it writable for this user")
    results = [CaseResult(name, problem=problem) for name, problem in source.problems.items()]
    for result in results:
        report(result)
    for name in source.names:
        results.append(_predict_case(models, source, name, output, save_probabilities))
        report(results[-1])
    return results


def _predict_case(
    models: Sequence[LoadedModel], source: Source, name: str, output: Path, save_probabilities: bool
) -> CaseResult:
    start = time.perf_counter()
    remarks: tuple[str, ...] = ()
    try:
        source.check(name)
        with source.files(name) as files, TemporaryDirectory() as folder:
            checked = check_case(files, models[0], models[1:])
            remarks = checked.remarks
            _check_memory(models, checked, save_probabilities)
            with redirect_stdout(StringIO()):
                _predict(models, name, files, Path(folder), save_probabilities)
            segmentation = Path(folder) / f"{name}{models[0].file_ending}"
            source.write(name, segmentation, source.target(name, output))
            for ending in (".npz", ".pkl") if save_probabilities else ():
                with replacing(output / f"{name}{ending}") as partial:
                    shutil.copyfile(Path(folder) / f"{name}{ending}", partial)
    except (MemoryError, torch.OutOfMemoryError) as error:
        problem = f"too large for memory ({str(error).splitlines()[0] if str(error) else 'out of memory'})"
        return CaseResult(name, problem=problem, remarks=remarks)
    except Exception as error:  # whatever nnU-Net raises, the other cases are predicted
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return CaseResult(name, problem=problem, remarks=remarks)
    return CaseResult(name, time.perf_counter() - start, remarks=remarks)


def _check_memory(models: Sequence[LoadedModel], checked: CheckedCase, save_probabilities: bool) -> None:
    free = available_bytes()
    if free is None:
        return
    needed = exceeding_bytes(models, checked.shape, checked.spacing, free, save_probabilities)
    if needed is not None:
        size = "x".join(map(str, checked.shape))
        raise ValueError(
            f"too large for memory: {size} voxels need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; crop "
            "the image or use a machine with more"
        )


def _predict(
    models: Sequence[LoadedModel], name: str, files: Sequence[Path], folder: Path, probabilities: bool
) -> None:
    if len(models) == 1:
        _predict_model(models[0], name, files, folder, probabilities)
        return
    outputs = [folder / str(i) for i in range(len(models))]
    for model, path in zip(models, outputs, strict=True):
        path.mkdir()
        _predict_model(model, name, files, path, True)
    predictor = models[0].predictor
    merge_files(
        [str(path / f"{name}.npz") for path in outputs],
        str(folder / name),
        models[0].file_ending,
        predictor.plans_manager.image_reader_writer_class(),
        predictor.label_manager,
        probabilities,
    )


def _predict_model(model: LoadedModel, name: str, files: Sequence[Path], folder: Path, probabilities: bool) -> None:
    stage = None
    if model.previous is not None:
        stage = folder / "previous"
        stage.mkdir()
        _predict_model(model.previous, name, files, stage, False)
    model.predictor.predict_from_files_sequential(
        [[str(path) for path in files]],
        [str(folder / name)],
        save_probabilities=probabilities,
        folder_with_segs_from_prev_stage=None if stage is None else str(stage),
    )
