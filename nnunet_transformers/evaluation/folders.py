"""Evaluation of a folder of predictions: several cases at once, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from rich.progress import track

from .._orientation import displacement, reoriented_by
from .._paths import inside
from .._processes import available_cores
from .._reading import RefusedError, reading
from .._workers import SpawnedPool
from .case_metrics import case_metrics, metric_names
from .conventions import ALL_LABELS, Conventions
from .results import Evaluation
from .segmentations import (
    DATASET_JSON,
    common_file_ending,
    dataset_json_of,
    find_reader,
    load_dataset_json,
    read_label_map,
    validation_folders,
)
from .targets import Targets

T = TypeVar("T")

# more would wait for the disk, and take the memory of as many cases
MOST_PROCESSES = 8


@dataclass(frozen=True)
class _Case:
    name: str
    prediction: Path
    reference: Path


def evaluate_folder(
    predictions: Path,
    labels: Path,
    conventions: Conventions | None = None,
    dataset_json: Path | None = None,
    targets: Targets | None = None,
    processes: int | None = None,
) -> Evaluation:
    """Compute all metrics of a folder of predicted segmentations.

    Args:
        predictions: folder of segmentations; or a trained model's folder (``TRAINER__PLANS__CONFIGURATION``), whose
            folds' validation cases are evaluated together; those of fold_all, which was trained on them, never are.
        labels: folder of reference segmentations of the same names.
        conventions: how the metrics are defined; nnU-Net's by default.
        dataset_json: file that names labels, regions and reader; by default the one that nnU-Net writes beside
            predictions or into the model's folder.
        targets: labels and regions to evaluate instead of those of dataset.json.
        processes: cases at a time, each of which takes about 7 bytes a voxel; 0 computes in this process. By default
            as many as CPU cores, at most 8.

    Raises:
        FileNotFoundError: if a folder, all predictions, a label file or dataset.json is missing.
        ValueError: if a file cannot be read, or prediction and reference do not fit each other.
        RuntimeError: if a worker process was killed.
    """
    conventions = conventions or Conventions()
    for folder in (predictions, labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    folders = validation_folders(predictions) or [predictions]
    described = dataset_json or dataset_json_of(folders[0])
    dataset = load_dataset_json(described) if described else None
    if targets is None:
        if dataset is None:
            raise FileNotFoundError(
                f"no {DATASET_JSON} in {predictions} names the labels; give it by --dataset-json, or labels by --label"
            )
        with reading(str(described), "a dataset.json of nnU-Net"):
            targets = Targets.from_dataset_json(dataset)
    elif dataset is not None and targets.ignore is None:
        with reading(str(described), "a dataset.json of nnU-Net"):
            ignore = dataset["labels"].get("ignore")
            if not isinstance(ignore, int | None):
                raise RefusedError(f"{described}: the label ignore must be a number, got {ignore!r}")
            targets = replace(targets, ignore=ignore)
    _check_names(targets, conventions)
    file_ending = dataset["file_ending"] if dataset else common_file_ending(labels)
    cases = list(_cases(folders, labels, file_ending))
    reader = find_reader(dataset, file_ending, cases[0].reference)
    processes = min(available_cores(), MOST_PROCESSES) if processes is None else processes
    with _workers(min(processes, len(cases))) as pool:
        arguments = zip(*((case, reader, targets, conventions) for case in cases), strict=True)
        results = pool.map(_evaluate, *arguments) if pool else map(_evaluate, *arguments)
        rows, elsewhere = zip(*_progress(results, len(cases)), strict=True)
    others = {path.name.removesuffix(file_ending) for path in labels.glob(f"*{file_ending}")}
    metrics = metric_names(conventions)
    values = [[[row[t.key][metric] for metric in metrics] for t in targets.targets] for row in rows]
    return Evaluation(
        labels={target.key: target.name for target in targets.targets},
        metrics=metrics,
        # whole paths, as the file may be read from another working folder
        files={case.name: (str(case.prediction.absolute()), str(case.reference.absolute())) for case in cases},
        values=np.array(values, float),
        conventions=conventions.as_json(),
        without_prediction=sorted(others - {case.name for case in cases}),
        elsewhere={case.name: distance for case, distance in zip(cases, elsewhere, strict=True) if distance},
    )


def _evaluate(
    case: _Case, reader: BaseReaderWriter, targets: Targets, conventions: Conventions
) -> tuple[dict[str, dict[str, float]], float]:
    """Return the metrics of a case, and by how many mm prediction and reference lie apart."""
    prediction, reference = (read_label_map(reader, path) for path in (case.prediction, case.reference))
    try:
        metrics = case_metrics(prediction, reference, targets, conventions)
    except ValueError as error:
        raise ValueError(f"{case.prediction}: {error}; is {case.reference} its reference?") from error
    # a reader that turns images compares them where they are, if their boxes are the same
    turned = reoriented_by(type(reader)) is not None
    return metrics, 0.0 if turned else displacement(case.prediction, case.reference)


def _cases(folders: Iterable[Path], labels: Path, file_ending: str) -> Iterator[_Case]:
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob(f"*{file_ending}"))):
        if path.name in found:
            raise ValueError(f"{path.name} is in {found[path.name].parent} and {path.parent}; evaluate one of them")
        found[path.name] = path
        reference = inside(labels, path.name)
        if not reference.is_file():
            raise FileNotFoundError(f"label file {reference} of the prediction {path} is missing")
        yield _Case(path.name.removesuffix(file_ending), path, reference)
    if not found:
        where = ", ".join(map(str, folders))
        raise FileNotFoundError(f"{where} holds no segmentations that end in {file_ending}")


def _check_names(targets: Targets, conventions: Conventions) -> None:
    names = targets.names
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"labels must have different names, and there must be one; there are {names}")
    keys = [target.key for target in targets.targets]
    if twice := next((t for i, t in enumerate(targets.targets) if t.key in keys[:i]), None):
        raise ValueError(f"the label {twice.name!r} has the values of another, {twice.key}; name them once")
    asked = {*conventions.label_tolerances, *conventions.lesions} - {ALL_LABELS}
    if unknown := sorted(asked - {*names}):
        raise ValueError(f"there is no label {unknown[0]!r}; there are {', '.join(names)}")


@contextmanager
def _workers(processes: int) -> Iterator[Executor | None]:
    if processes < 2:
        yield None
        return
    try:
        with SpawnedPool(processes) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, most often because memory ran out: use fewer --processes. (A script must "
            "call evaluate_folder under `if __name__ == '__main__':`.)"
        ) from error


def _progress(results: Iterable[T], total: int) -> Iterable[T]:
    return track(results, description="evaluating", total=total)
