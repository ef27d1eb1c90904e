"""Throughput and memory of the pretraining methods, loading included, at the settings of benchmarks/pretraining.py.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python benchmarks/pretraining_speed.py

Each line is a fresh process with one method and a number of workers that load. Prints, for epochs after the first:
samples per second, the share of the time that training waits for data, and the process's peak memory with that of the
largest worker.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretraining import CONFIGURATION, DATASET, FOLD, METHODS, fit_arguments, plan

from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.pretraining.data.folds import validation_cases
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import fit

SAMPLES, EPOCHS = 48, 2
KINDS = {"qt_ssl": ("crops",), "unimiss": ("images", "volumes")}


def measure(name: str, plans: str, prepared: Path, workers: int, kind: str) -> dict[str, object]:
    """Train a few epochs in this process."""
    method = METHODS[name]
    changes = {
        "data.init_args.num_workers": workers,
        "data.init_args.samples_per_epoch": SAMPLES,
        "trainer.max_epochs": EPOCHS,
        "trainer.profiler": "simple",
        "trainer.enable_model_summary": "false",
    }
    if name == "unimiss":
        # an epoch of either kind is a benchmark of its own
        changes |= {"data.init_args.period": EPOCHS, "trainer.max_epochs": EPOCHS * (1 + (kind == "volumes"))}
    with tempfile.TemporaryDirectory() as folder:
        arguments = fit_arguments(method.settings, method.folder_argument, prepared, Path(folder), **changes)
        trainer: Any = fit(method.recipe, arguments, PlannedConfiguration.load(DATASET, plans, CONFIGURATION))
    durations = trainer.profiler.recorded_durations
    epochs = durations["run_training_epoch"][1 - EPOCHS :]
    loads = durations["[_TrainingEpochLoop].train_dataloader_next"]
    waiting = loads[len(loads) * (1 - EPOCHS) // trainer.max_epochs :]
    # the end of an epoch writes the state and the encoder
    saving = durations["save_checkpoint"][1 - EPOCHS :]
    saving += durations["[Callback]CheckpointWriter.on_train_epoch_end"][1 - EPOCHS :]
    seconds = sum(epochs) - sum(saving)
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "method": name,
        "kind": kind,
        "workers": workers,
        "samples_per_second": round(SAMPLES * (EPOCHS - 1) / seconds, 2),
        "waiting_for_data": round(sum(waiting) / seconds, 4),
        "peak_gib": round(peak / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=5, metavar=("METHOD", "PLANS", "PREPARED", "WORKERS", "KIND"))
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(one[0], one[1], Path(one[2]), int(one[3]), one[4])))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(os.environ["nnUNet_raw"]) / DATASET
        prepared = Path(folder) / "prepared"
        prepare(source, prepared, patch_size=(40, 56, 40), processes=2, left_out=validation_cases(source, FOLD))
        for name, kinds in KINDS.items():
            plans = plan(METHODS[name])
            for kind in kinds:
                for workers in (0, 2):
                    command = [sys.executable, __file__, "--one", name, plans, str(prepared), str(workers), kind]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    print(output.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
