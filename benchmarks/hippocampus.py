"""QT-UNet beside stock nnU-Net on MSD hippocampus, fold 0, 500 iterations, through nnU-Net's own commands.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python benchmarks/hippocampus.py stock qt_unet qt_unet_post_norm qt_unet_window_7

Each row plans, trains 10 epochs of 50 iterations on CPU and validates; nothing of nnU-Net is changed, the schedules are
the trainers in benchmarks/trainers, found through nnUNet_extTrainer. Prints mean foreground Dice of the validation
cases and the median time per iteration (the five validation batches of an epoch count as five more).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_transformers.report.training_log import read_curves


@dataclass(frozen=True)
class Row:
    """One training: `overrides` of the planned network's arguments go into a copy of the plan named with `suffix`."""

    planner: str
    plans: str
    trainer: str
    suffix: str = ""
    overrides: dict[str, object] = field(default_factory=dict)


STOCK = Row("ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer_500iterations")
QT_UNET = Row("nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans", "nnUNetTrainerQTUNet_500iterations")
ROWS = {
    "stock": STOCK,
    "qt_unet": QT_UNET,
    "qt_unet_post_norm": replace(QT_UNET, suffix="PostNorm", overrides={"norm_placement": "post"}),
    "qt_unet_window_7": replace(QT_UNET, suffix="Window7", overrides={"window_sizes": [7, 7, 7]}),
}
DATASET, ITERATIONS = "Dataset004_Hippocampus", 55


def run(command: str, **environment: str) -> None:
    print(f"$ {command}", flush=True)
    subprocess.run(shlex.split(command), env={**os.environ, **environment}, check=True)


def write_variant(row: Row) -> str:
    """Write a copy of the planned plan with the row's overrides, on the same preprocessed data; returns its name."""
    if not row.suffix:
        return row.plans
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    plan = json.loads((folder / f"{row.plans}.json").read_text())
    plan["plans_name"] = row.plans.removesuffix("Plans") + row.suffix + "Plans"
    plan["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"].update(row.overrides)
    (folder / f"{plan['plans_name']}.json").write_text(json.dumps(plan, indent=4))
    return plan["plans_name"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    for row in parser.parse_args().rows:
        spec = ROWS[row]
        run(f"nnUNetv2_plan_and_preprocess -d 4 -c 3d_fullres -pl {spec.planner} -np 2 -npfp 2", nnUNet_n_proc_DA="1")
        plans = write_variant(spec)
        folder = Path(os.environ["nnUNet_results"]) / DATASET / f"{spec.trainer}__{plans}__3d_fullres" / "fold_0"
        if not (folder / "validation" / "summary.json").is_file():
            trainers = str(Path(__file__).parent / "trainers")
            training = {"nnUNet_n_proc_DA": "0", "nnUNet_extTrainer": trainers}
            run(f"nnUNetv2_train 4 3d_fullres 0 -tr {spec.trainer} -p {plans} -device cpu", **training)
        summary = json.loads((folder / "validation" / "summary.json").read_text())
        curves = read_curves(folder)
        result = {
            "row": row,
            "dice": round(summary["foreground_mean"]["Dice"], 4),
            "dice_per_label": {k: round(v["Dice"], 4) for k, v in summary["mean"].items()},
            "cases": len(summary["metric_per_case"]),
            "seconds_per_iteration": round(statistics.median(curves.epoch_seconds) / ITERATIONS, 2),
            "pseudo_dice_per_epoch": curves.pseudo_dice,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
