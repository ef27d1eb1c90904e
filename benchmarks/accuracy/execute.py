"""Execute the runs of a queue."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_transformers._atomic import replacing, write_json
from nnunet_transformers._lease import FolderInUse, lease
from nnunet_transformers._reading import RefusedError, read_json
from nnunet_transformers.benchmarking.environment import describe_environment
from nnunet_transformers.cpu import release_freed_memory

from .costs import costs_file, describe, iterations_for, measured_as, read_costs, seconds_per_iteration
from .runs import Run, append_line, read_lines, read_queue, read_runs, results_file, work_folder
from .tables import BUDGETS, DATA, ROWS, Row
from .trainer import CPU, LOGGED, Stopped, make_trainer

READINGS, BETWEEN_READINGS = 5, 1.0
SETTINGS_NAME = "settings.json"


@dataclass(frozen=True)
class How:
    """How runs are executed.

    Attributes:
        device: where networks are trained. The length of a training follows from the processor's costs on every one.
        loaders: processes that load and augment; with 0 it is done between the steps, and a seed reproduces a run.
        keeps_state: save the state every epoch, so that a killed run goes on.
        keeps_final: keep the final checkpoint's weights.
        graphs: on a GPU, run the passes of a training step as CUDA graphs.
    """

    device: torch.device = CPU
    loaders: int = 0
    keeps_state: bool = True
    keeps_final: bool = True
    graphs: bool = False


def run_queue(path: Path, is_stopped: Callable[[], bool], how: How = How()) -> list[Run]:
    """Execute runs until all are finished, held by other processes or failed here.

    Args:
        path: queue, which is read again after each run.
        is_stopped: asked after each epoch and each run.
        how: device, loading, and what is kept.

    Returns:
        the runs that failed; their errors are printed.

    Raises:
        RefusedError: if the queue is not readable at the start, or the results are not.
    """
    failed: list[Run] = []
    runs = read_queue(path)
    while not is_stopped():
        done = {*finished_runs(), *failed}
        runs = _read_again(path, runs)
        if not any(_take(run, is_stopped, how, failed) for run in runs if run not in done):
            break
    return failed


def _read_again(path: Path, before: list[Run]) -> list[Run]:
    """The queue, or what it was before where it stays unreadable: an editor may be saving it."""
    for left in reversed(range(READINGS)):
        try:
            return read_queue(path)
        except (RefusedError, OSError) as error:
            if left:
                time.sleep(BETWEEN_READINGS)
            else:
                print(f"{error}; goes on with the queue as it was before", file=sys.stderr, flush=True)
    return before


def _take(run: Run, is_stopped: Callable[[], bool], how: How, failed: list[Run]) -> bool:
    """Execute a run, unless another process holds it or has finished it; returns whether it did."""
    folder = work_folder() / run.name
    try:
        with lease(folder, folder.with_name(f"{run.name}.lease")):
            if run in finished_runs():  # in the meantime
                return False
            print(f"{time.strftime('%m-%d %H:%M')} {run.name}", flush=True)
            append_line(results_file(), execute(run, folder, is_stopped, how))
            tidy(folder, how.keeps_final)
    except FolderInUse:
        return False
    except Stopped:
        return True
    except RefusedError as error:
        print(f"{run.name}: {error}", file=sys.stderr, flush=True)
        failed.append(run)
    except Exception:
        traceback.print_exc()
        failed.append(run)
    return True


def finished_runs() -> set[Run]:
    """The runs that the results have."""
    return set(read_runs(results_file()))


def execute(run: Run, folder: Path, is_stopped: Callable[[], bool], how: How = How()) -> dict[str, Any]:
    """Train and validate, from where an earlier process has left it.

    Args:
        run: run.
        folder: folder of the training.
        is_stopped: asked after each epoch.
        how: device, loading, and what is kept.

    Returns:
        the run's line of the results.

    Raises:
        Stopped: if it was asked to stop.
        FolderInUse: if another process measures the row's cost.
        RefusedError: if the dataset is not prepared for the row, or its plan or the row has changed.
    """
    data = DATA[run.dataset]
    iterations = iterations_for(run.budget, run.row, run.dataset)
    entries = recorded_plans(run)
    with patch.dict(os.environ, nnUNet_results=str(folder), nnUNet_n_proc_DA=str(how.loaders)):
        trainer = make_trainer(ROWS[run.row], data, run.fold, run.seed, iterations, how.device)
        trainer.is_stopped, trainer.keeps_state = is_stopped, how.keeps_state
        trainer.is_captured = how.graphs
        trainer.initialize()
        check_plan(describe(trainer), entries)
        check_state(folder, settings_of(trainer, ROWS[run.row], iterations))
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
        trainer.run_training()
        trainer.perform_actual_validation()
    record = {
        **asdict(run),
        "configuration": data.configuration,
        "iterations": trainer.num_epochs * trainer.num_iterations_per_epoch,
        "epochs": trainer.num_epochs,
        "calibrated_seconds": seconds_per_iteration(run.row, run.dataset) if BUDGETS[run.budget].units else None,
        **describe(trainer),
        **times_and_curve(trainer.logger.get_checkpoint()),
        **dice(read_json(Path(trainer.output_folder) / "validation" / "summary.json"), trainer.dataset_json["labels"]),
        **describe_environment(how.device),
    }
    del trainer
    gc.collect()
    if how.device.type == "cuda":
        torch.cuda.empty_cache()
    release_freed_memory()
    return record


def recorded_plans(run: Run) -> dict[str, dict[str, Any]]:
    """The entries that have to be of the run's plan, by their names: its cost, and finished runs beside it."""
    entries = {}
    if BUDGETS[run.budget].units:
        pair = measured_as(run.row, run.dataset)
        entries[f"{costs_file()}: the cost of {' on '.join(pair)}"] = read_costs()[pair]
    for record in read_lines(results_file()):
        if (record["row"], record["dataset"]) == (run.row, run.dataset):
            entries[f"{results_file()}: the run {Run.of(record).name}"] = record
    return entries


def check_plan(described: dict[str, Any], entries: dict[str, dict[str, Any]]) -> None:
    """Check that entries are of the plan that is to be trained.

    Args:
        described: batch, patch and parameters.
        entries: what was recorded, which may lack these, by name.

    Raises:
        RefusedError: if an entry is of another plan; names it.
    """
    for name, entry in entries.items():
        if differing := [key for key in described if key in entry and entry[key] != described[key]]:
            changes = ", ".join(f"{key} {entry[key]} instead of {described[key]}" for key in differing)
            raise RefusedError(f"{name} is of another plan, with {changes}; remove its line")


def settings_of(trainer: Any, row: Row, iterations: int) -> dict[str, Any]:
    """What a training has to have in common with the state that it goes on from, as JSON holds it."""
    settings = {
        "plan": trainer.configuration_manager.configuration,
        "trainer": row.trainer,
        "attributes": dict(row.attributes),
        "iterations": iterations,
        "labelled": trainer.labelled,
    }
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def check_state(folder: Path, settings: dict[str, Any]) -> None:
    """Check that the state in a run's folder, if any, is of the same settings, and write these beside it.

    Args:
        folder: folder of the training.
        settings: of ``settings_of``.

    Raises:
        RefusedError: if it is of others, or they are not there.
    """
    file = folder / SETTINGS_NAME
    if any(folder.rglob("checkpoint_*.pth")):
        if not file.is_file():
            raise RefusedError(f"{folder} holds a training without {SETTINGS_NAME}; remove it")
        before = read_json(file)
        if differing := [key for key in settings if before.get(key) != settings[key]]:
            raise RefusedError(f"{folder} holds a training with other {' and '.join(differing)}; remove it")
    write_json(settings, file)


def times_and_curve(logged: dict[str, list]) -> dict[str, Any]:
    """Times of a training and its curve, by epoch, of what nnU-Net's logger holds."""
    walls = zip(logged["epoch_start_timestamps"], logged["epoch_end_timestamps"], strict=True)
    return {
        "processor_seconds": round(sum(logged[LOGGED]), 1),
        "wall_seconds": round(sum(end - start for start, end in walls), 1),
        "curve": {
            "processor_seconds": [round(seconds, 1) for seconds in accumulate(logged[LOGGED])],
            "pseudo_dice": [rounded(value) for value in logged["mean_fg_dice"]],
            "train_loss": [rounded(value) for value in logged["train_losses"]],
        },
    }


def dice(summary: dict[str, Any], labels: dict[str, int]) -> dict[str, Any]:
    """Dice of whole validation cases; None for a label that neither side has.

    Args:
        summary: nnU-Net's.
        labels: numbers by name, of ``dataset.json``.
    """
    names = {str(number): name for name, number in labels.items()}
    return {
        "dice": rounded(summary["foreground_mean"]["Dice"]),
        "dice_per_label": {names[label]: rounded(metrics["Dice"]) for label, metrics in summary["mean"].items()},
        "dice_per_case": {
            Path(case["prediction_file"]).name.split(".")[0]: [rounded(m["Dice"]) for m in case["metrics"].values()]
            for case in summary["metric_per_case"]
        },
    }


def rounded(value: float) -> float | None:
    """A number for the results; None where it is none, as JSON has no NaN."""
    return round(float(value), 5) if np.isfinite(value) else None


def tidy(folder: Path, keep_final: bool = True) -> None:
    """Delete what is large of a finished run: checkpoints, but for the final one's weights.

    Args:
        folder: folder of the training.
        keep_final: keep the final checkpoint, without the optimiser's state.
    """
    for checkpoint in folder.rglob("checkpoint_*.pth"):
        if keep_final and checkpoint.name == "checkpoint_final.pth":
            content = torch.load(checkpoint, map_location="cpu", weights_only=False)
            content["optimizer_state"]["state"] = {}
            with replacing(checkpoint) as partial:
                torch.save(content, partial)
        else:
            checkpoint.unlink()
