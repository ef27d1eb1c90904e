"""Our networks beside stock nnU-Net on a dataset, fold 0, 500 iterations, through nnU-Net's own commands.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python benchmarks/segmentation.py hippocampus stock qt_unet unet2022 mit
    python benchmarks/segmentation.py em stock qt_unet unet2022 mit

Each row plans, trains 10 epochs of 50 iterations on CPU and validates; nothing of nnU-Net is changed, the schedules are
the trainers in benchmarks/trainers, found through nnUNet_extTrainer. Prints mean foreground Dice of the validation
cases and the median time per iteration (the five validation batches of an epoch count as five more), for "em" the mean
IoU over probability thresholds as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunet_transformers.evaluation.report.training_log import read_curves

ITERATIONS = 55


@dataclass(frozen=True)
class Data:
    """A dataset and the configuration to train; patch and batch in place of the planned ones, for 2D on a CPU."""

    number: int
    name: str
    configuration: str
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Row:
    """One training: `overrides` of the planned network's arguments go into a copy of the plan named with `suffix`."""

    planner: str
    plans: str
    trainer: str
    suffix: str = ""
    overrides: dict[str, object] = field(default_factory=dict)


DATA = {
    "hippocampus": Data(4, "Dataset004_Hippocampus", "3d_fullres"),
    "em": Data(120, "Dataset120_ISBI2012EM", "2d", patch_size=(256, 256), batch_size=2),
}
QT_UNET = Row("nnUNetPlannerQTUNetT", "nnUNetQTUNetTPlans", "nnUNetTrainerQTUNet_500iterations")
ROWS = {
    "stock": Row("ExperimentPlanner", "nnUNetPlans", "nnUNetTrainer_500iterations"),
    "qt_unet": QT_UNET,
    "qt_unet_post_norm": replace(QT_UNET, suffix="PostNorm", overrides={"norm_placement": "post"}),
    "qt_unet_window_7": replace(QT_UNET, suffix="Window7", overrides={"window_sizes": [7, 7, 7]}),
    "unet2022": Row("nnUNetPlannerUNet2022T", "nnUNetUNet2022TPlans", "nnUNetTrainerUNet2022_500iterations"),
    "mit": Row("nnUNetPlannerMiT7", "nnUNetMiT7Plans", "nnUNetTrainerMiT_500iterations"),
}


def run(command: str, **environment: str) -> None:
    print(f"$ {command}", flush=True)
    subprocess.run(shlex.split(command), env={**os.environ, **environment}, check=True)


def write_variant(row: Row, data: Data) -> str:
    """Write a copy of the planned plan with the row's overrides, on the same preprocessed data; returns its name."""
    suffix = row.suffix + (f"Patch{data.patch_size[0]}" if data.patch_size else "")
    if not suffix:
        return row.plans
    folder = Path(os.environ["nnUNet_preprocessed"]) / data.name
    plan = json.loads((folder / f"{row.plans}.json").read_text())
    plan["plans_name"] = row.plans.removesuffix("Plans") + suffix + "Plans"
    configuration = plan["configurations"][data.configuration]
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments.update(row.overrides)
    if data.patch_size:
        configuration["patch_size"] = data.patch_size
        configuration["batch_size"] = data.batch_size
        if "patch_size" in arguments:
            arguments["patch_size"] = data.patch_size
    (folder / f"{plan['plans_name']}.json").write_text(json.dumps(plan, indent=4))
    return plan["plans_name"]


def train(row: Row, data: Data) -> Path:
    """Plan and train one row, unless it is trained already; returns the fold's folder."""
    run(
        f"nnUNetv2_plan_and_preprocess -d {data.number} -c {data.configuration} -pl {row.planner} -np 2 -npfp 2",
        nnUNet_n_proc_DA="1",
    )
    plans = write_variant(row, data)
    model = f"{row.trainer}__{plans}__{data.configuration}"
    folder = Path(os.environ["nnUNet_results"]) / data.name / model / "fold_0"
    if not (folder / "validation" / "summary.json").is_file():
        trainers = str(Path(__file__).parent / "trainers")
        training = {"nnUNet_n_proc_DA": "0", "nnUNet_extTrainer": trainers}
        command = f"nnUNetv2_train {data.number} {data.configuration} 0 -tr {row.trainer} -p {plans} --npz -device cpu"
        run(command, **training)
    return folder


def mean_iou(folder: Path, data: Data) -> float:
    """Of the validation cases, over thresholds 0.5 to 0.95."""
    output = folder / "iou.json"
    labels = Path(os.environ["nnUNet_raw"]) / data.name / "labelsTr"
    command = Path(sys.executable).with_name("nnunet-transformers")
    output.unlink(missing_ok=True)
    run(f"{command} evaluate-iou {folder / 'validation'} {labels} --output {output}")
    return json.loads(output.read_text())["mean_iou"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(DATA))
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    arguments = parser.parse_args()
    data = DATA[arguments.data]
    for name in arguments.rows:
        folder = train(ROWS[name], data)
        summary = json.loads((folder / "validation" / "summary.json").read_text())
        curves = read_curves(folder)
        result = {
            "row": name,
            "dice": round(summary["foreground_mean"]["Dice"], 4),
            "dice_per_label": {k: round(v["Dice"], 4) for k, v in summary["mean"].items()},
            "cases": len(summary["metric_per_case"]),
            "seconds_per_iteration": round(statistics.median(curves.epoch_seconds) / ITERATIONS, 2),
            "pseudo_dice_per_epoch": curves.pseudo_dice,
        }
        if data.name.endswith("EM"):
            result["mean_iou"] = round(mean_iou(folder, data), 4)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
