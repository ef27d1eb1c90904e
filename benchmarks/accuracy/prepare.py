"""Plan, preprocess and split the datasets, through nnU-Net's own functions; what is there is not made again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunet_transformers._atomic import write_json
from nnunet_transformers._reading import RefusedError
from nnunet_transformers.discovery import find
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.plans.stored_data import StoredData

from .runs import FOLDS
from .tables import PRETRAININGS, ROWS, Data, Row

COMMAND = "python -m benchmarks.accuracy"


def check_raw(datasets: Iterable[Data]) -> None:
    """Check that datasets are in nnUNet_raw.

    Raises:
        RefusedError: if one is not; says where it has to be.
    """
    for data in datasets:
        folder = Path(nnUNet_raw) / data.dataset
        if not (folder / "dataset.json").is_file():
            raise RefusedError(
                f"{data.dataset} is not in nnUNet_raw: {folder} has to hold it in nnU-Net's layout, with dataset.json, "
                "imagesTr and labelsTr"
            )


def check_prepared(data: Data, row: Row) -> None:
    """Check that a dataset is planned for a row, preprocessed and split by patient: nnU-Net would split it by case.

    Raises:
        RefusedError: if it is not; names the command that does it.
    """
    plan, split, command = _folder(data) / f"{row.plans}.json", _split_file(data), f"`{COMMAND} prepare`"
    if not plan.is_file():
        made_by = f"`{COMMAND} pretrain {row.pretraining}`" if row.pretraining else command
        raise RefusedError(f"the plan {plan} is missing; {made_by} makes it")
    stored = StoredData(_planned(data, row), _folder(data))
    cases = stored.cases if stored.path.is_dir() else []
    if not cases:
        raise RefusedError(f"{stored.path} holds no preprocessed cases; {command} makes them")
    if not split.is_file():
        raise RefusedError(f"{split} is missing; {command} writes it")
    if _read_split(split) != grouped_split(cases, data.group):
        raise RefusedError(
            f"{split} is not this benchmark's split of the cases in {stored.path}, which keeps those of a patient "
            f"together; move it away, with the trainings on it, and run {command}"
        )


def prepare(data: Data, rows: Iterable[Row], processes: int = 1) -> None:
    """Prepare a dataset for the rows that suit it, in a number of processes.

    A row that starts from an encoder needs the plan of its network, from which ``pretrain`` makes its own.

    Raises:
        RefusedError: if the dataset is not in nnUNet_raw, or an existing split has other folds than this benchmark's.
    """
    check_raw([data])
    planned: list[Row] = []
    for row in rows:
        scratch = ROWS[PRETRAININGS[row.pretraining].row] if row.pretraining else row
        if row.suits(data) and scratch not in planned:
            planned.append(scratch)
    if not planned:
        print(f"{data.dataset}, {data.configuration}: no row suits it; it is left out", flush=True)
        return
    # nnU-Net's planners count data loaders as threads, of which there has to be one
    with patch.dict(os.environ, nnUNet_n_proc_DA="1"):
        extract_fingerprints([data.number], num_processes=processes, clean=False)
        for row in planned:
            _plan(data, row, processes)
    cases = StoredData(_planned(data, planned[-1]), _folder(data)).cases
    write_split(_split_file(data), grouped_split(cases, data.group))


def _plan(data: Data, row: Row, processes: int) -> None:
    if not (_folder(data) / f"{row.plans}.json").is_file():
        with _changed_rules(row):
            plan_experiments([data.number], row.planner, overwrite_plans_name=row.plans)
    planned = _planned(data, row)
    stored = StoredData(planned, _folder(data))
    if not stored.path.is_dir() or len(stored.cases) != planned.dataset_json["numTraining"]:
        preprocess([data.number], row.plans, [data.configuration], [processes])


def _changed_rules(row: Row) -> AbstractContextManager[Any]:
    if not row.token_rules:
        return nullcontext()
    planner = find(row.planner)
    return patch.object(planner, "token_rules", replace(planner.token_rules, **row.token_rules))


def _folder(data: Data) -> Path:
    return Path(nnUNet_preprocessed) / data.dataset


def _split_file(data: Data) -> Path:
    return _folder(data) / "splits_final.json"


def _planned(data: Data, row: Row) -> PlannedConfiguration:
    return PlannedConfiguration.load(data.dataset, row.plans, data.configuration)


def group_of(case: str, pattern: str) -> str:
    """What a case has in common with the others of its patient.

    Raises:
        RefusedError: if the pattern does not match the beginning of the name.
    """
    match = re.match(pattern, case)
    if match is None:
        raise RefusedError(f"case {case} does not begin with {pattern}, the pattern of the dataset's patients")
    return match[0]


def grouped_split(cases: Sequence[str], pattern: str) -> list[dict[str, list[str]]]:
    """Split into nnU-Net's five folds, by patient.

    Args:
        cases: names.
        pattern: regular expression of the part of a name that is the patient. Where every case is a patient, the split
            is nnU-Net's own.
    """
    groups = {case: group_of(case, pattern) for case in sorted(cases)}
    return [
        {part: [case for case, group in groups.items() if group in set(patients)] for part, patients in fold.items()}
        for fold in generate_crossval_split(sorted(set(groups.values())), seed=12345, n_splits=FOLDS)
    ]


def write_split(path: Path, split: list[dict[str, list[str]]]) -> None:
    """Write ``splits_final.json``; an existing one has to be the same.

    Raises:
        RefusedError: if it is not.
    """
    if path.is_file():
        if _read_split(path) != split:
            raise RefusedError(f"{path} is another split; move it away, with the trainings on it")
        return
    write_json(split, path)


def _read_split(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RefusedError(f"{path} is no JSON: {error}; move it away") from None
