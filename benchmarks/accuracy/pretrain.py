"""Pretrain an encoder without labels and attach it to its network's plan, through the package's own commands."""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_raw

from nnunet_transformers.benchmarking.environment import describe_environment

from .costs import measure
from .runs import append_line, pretraining_file, work_folder
from .tables import DATA, JUDGED_FOLD, PRETRAININGS, REFERENCE, ROWS, UNIT_ITERATIONS

RUN_CLI = "from nnunet_transformers.cli import main; main()"


def pretrain(name: str, device: torch.device, workers: int) -> None:
    """Prepare the images that the judged fold does not validate on, pretrain, and write the row's plan.

    The record has the curve, the processor time and, on CPU, that time in units of the reference's cost.

    Args:
        name: entry of ``PRETRAININGS``, whose dataset is planned.
        device: where it is pretrained.
        workers: processes that load.

    Raises:
        subprocess.CalledProcessError: if a command failed; it has said why.
    """
    given, work = PRETRAININGS[name], work_folder() / "pretraining"
    row, data = ROWS[given.row], DATA[given.dataset]
    plan = ["-d", data.dataset, "-p", row.plans, "-c", data.configuration]
    prepared, folder = work / f"{name}_prepared", work / name
    work.mkdir(parents=True, exist_ok=True)
    _cli("pretrain", "prepare", Path(nnUNet_raw) / data.dataset, prepared, "--fold", JUDGED_FOLD, *plan)
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
    start, before = time.perf_counter(), _processor_seconds()
    _cli("pretrain", "fit", "--config", given.recipe, *plan, *(f"--{key}={value}" for key, value in settings.items()))
    seconds, processor_seconds = time.perf_counter() - start, _processor_seconds() - before
    cost = {"processor_seconds": round(processor_seconds, 1)}
    if device.type == "cpu":  # elsewhere the processor does a part of the work
        cost["units"] = round(processor_seconds / (UNIT_ITERATIONS * measure(*REFERENCE)["seconds"]), 3)
    _cli("attach", folder / given.encoder, *plan, "-o", ROWS[name].plans, "--force")
    record = {
        "pretraining": name,
        "dataset": data.dataset,
        "seconds": round(seconds, 1),
        **cost,
        "settings": dict(given.settings),
        "curve": curve(folder),
        **describe_environment(device),
    }
    append_line(pretraining_file(), record)


def _processor_seconds() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cli(*words: object) -> None:
    print("$ nnunet-transformers", *words, flush=True)
    subprocess.run([sys.executable, "-c", RUN_CLI, *map(str, words)], check=True)


def curve(folder: Path) -> dict[str, list[Any]]:
    """The logged values of a run by name, each a list of [step, value]; those of a short run may be none."""
    columns: dict[str, list[Any]] = {}
    for file in folder.rglob("metrics.csv"):
        for line in csv.DictReader(file.read_text().splitlines()):
            for key, value in line.items():
                if key not in ("epoch", "step") and value:
                    columns.setdefault(key, []).append([int(line["step"]), float(value)])
    return columns
