"""Pretrain an encoder without labels and attach it to its network's plan, through the package's own commands."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_raw

from nnunet_transformers._atomic import write_json
from nnunet_transformers._reading import RefusedError, read_json
from nnunet_transformers.benchmarking.environment import describe_environment

from .costs import measure
from .prepare import check_prepared
from .runs import append_line, pretraining_file, work_folder
from .tables import DATA, JUDGED_FOLD, PRETRAININGS, REFERENCE, ROWS, UNIT_ITERATIONS

RUN_CLI = ("-c", "from nnunet_transformers.cli import main; main()")
RUN_TIMED = ("-m", f"{__package__}.timed")
# in the folder of a run: its state, and what its parts have used
STATE, USED = "last.ckpt", "used.json"


def pretrain(name: str, device: torch.device, workers: int) -> None:
    """Prepare the images that the judged fold does not validate on, pretrain, and write the row's plan.

    One that was killed goes on from its state, and one that is complete is not repeated. The record has the curve, the
    processor time and, on CPU, that time in units of the reference's cost.

    Args:
        name: entry of ``PRETRAININGS``, whose dataset is planned.
        device: where it is pretrained.
        workers: processes that load.

    Raises:
        SystemExit: if a command failed; it has said why.
        RefusedError: if the dataset is not prepared, or the folder holds a run with other settings, or of unknown cost.
    """
    given, work = PRETRAININGS[name], work_folder() / "pretraining"
    row, data = ROWS[given.row], DATA[given.dataset]
    plan = ["-d", data.dataset, "-p", row.plans, "-c", data.configuration]
    prepared, folder = work / f"{name}_prepared", work / name
    check_prepared(data, row)
    if device.type == "cpu":  # for its units, at the end
        check_prepared(DATA[REFERENCE[1]], ROWS[REFERENCE[0]])
    used = read_used(folder, {"settings": json.loads(json.dumps(dict(given.settings))), "device": device.type})
    if not used["is_complete"]:
        _cli("pretrain", "prepare", Path(nnUNet_raw) / data.dataset, prepared, "--fold", JUDGED_FOLD, *plan)
        _fit(name, device, workers, plan, prepared, folder)
        used = {**read_json(folder / USED), "is_complete": True}
        write_json(used, folder / USED)
    cost = {"processor_seconds": used["processor_seconds"]}
    if device.type == "cpu":  # elsewhere the processor does a part of the work
        cost["units"] = round(used["processor_seconds"] / (UNIT_ITERATIONS * measure(*REFERENCE)["seconds"]), 3)
    _cli("attach", folder / given.encoder, *plan, "-o", ROWS[name].plans, "--force")
    record = {
        "pretraining": name,
        "dataset": data.dataset,
        "seconds": used["seconds"],
        **cost,
        "settings": dict(given.settings),
        "curve": curve(folder),
        **describe_environment(device),
    }
    append_line(pretraining_file(), record)


def read_used(folder: Path, how: dict[str, Any]) -> dict[str, Any]:
    """What the parts of a run have used so far; at its start, that is nothing, and is stored.

    Args:
        folder: of the run.
        how: settings and device, which are the same for all parts.

    Returns:
        these, "seconds", "processor_seconds" and "is_complete".

    Raises:
        RefusedError: if the folder holds a run with others, or one that has stored nothing.
    """
    file = folder / USED
    if not file.is_file():
        if (folder / STATE).exists():
            raise RefusedError(f"{folder} holds a run whose time is not known; move it away to pretrain anew")
        folder.mkdir(parents=True, exist_ok=True)
        write_json({**how, "seconds": 0.0, "processor_seconds": 0.0, "is_complete": False}, file)
    used = read_json(file)
    if changed := [key for key in how if used[key] != how[key]]:
        raise RefusedError(
            f"{folder} holds a run with other {' and '.join(changed)}, see {USED} there; move it away to pretrain anew"
        )
    return used


def _fit(name: str, device: torch.device, workers: int, plan: list[str], prepared: Path, folder: Path) -> None:
    """Pretrain, from the state if there is one."""
    given = PRETRAININGS[name]
    settings = {
        **given.settings,
        f"data.init_args.{given.folder_argument}": prepared,
        "data.init_args.num_workers": workers,
        "trainer.accelerator": "gpu" if device.type == "cuda" else "cpu",
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "CSVLogger",
        "trainer.logger.init_args.save_dir": folder,
        "trainer.log_every_n_steps": 10,
    }
    words = [*plan, *(f"--{key}={value}" for key, value in settings.items())]
    if (folder / STATE).exists():
        words += ["--ckpt_path", "last"]
    _cli("pretrain", "fit", "--config", given.recipe, *words, program=(*RUN_TIMED, str(folder / USED)))


def _cli(*words: object, program: tuple[str, ...] = RUN_CLI) -> None:
    print("$ nnunet-transformers", *words, flush=True)
    status = subprocess.run([sys.executable, *program, *map(str, words)], check=False).returncode
    if status:
        raise SystemExit(
            f"`nnunet-transformers {words[0]} {words[1]}` failed with status {status}, for the reason above; the same "
            "command goes on from there"
        )


def curve(folder: Path) -> dict[str, list[Any]]:
    """The logged values of a run by name, each a list of [step, value]; those of a short run may be none.

    Each part has a file. A part repeats the steps that the one before has made after its last state.
    """
    columns: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("metrics.csv"), key=lambda file: int(file.parent.name.removeprefix("version_"))):
        for line in csv.DictReader(file.read_text().splitlines()):
            for key, value in line.items():
                if key not in ("epoch", "step") and value:
                    columns.setdefault(key, {})[int(line["step"])] = float(value)
    return {key: [[step, value] for step, value in sorted(values.items())] for key, values in columns.items()}
