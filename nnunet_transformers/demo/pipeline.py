"""Run nnU-Net's commands one after the other, as a user would type them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

import typer

from .._plugins import declared, stock_names
from .._processes import available_cores
from ..discovery import CLASSES, find, planner_names, plans_name
from ..evaluation.report import write_report
from .dataset import make_dataset

# ends of the names of planners and trainers to start with
NETWORKS = ("QTUNet", "QTUNetT", "UNet2022", "UNet2022T", "MiT", "MiT7")


def _run(command: str, environment: dict[str, str]) -> None:
    """Run an nnU-Net command of this Python environment, whose output is shown as it is written.

    It lies beside Python, or where PATH leads after ``pip install --user``.

    Raises:
        RuntimeError: if it fails or is not found.
    """
    typer.secho(f"\n$ {command}", bold=True)
    program, *arguments = shlex.split(command)
    places = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))
    found = shutil.which(program, path=places)
    if found is None:
        raise RuntimeError(
            f"there is no {program} beside Python or on PATH; add the folder of nnU-Net's commands to PATH"
        )
    result = subprocess.run([found, *arguments], env=environment, check=False)
    if result.returncode:
        raise RuntimeError(f"`{command}` failed with exit code {result.returncode}; its own message is above")


def _check_trainer(name: str) -> None:
    """Raise ValueError for a trainer that nobody has, before minutes of planning."""
    own = {one for one in {*CLASSES, *stock_names()} if "Trainer" in one}
    plugins = declared("trainers")
    if name not in own and (("Trainer" not in name and name not in plugins) or find(name) is None):
        raise ValueError(f"unknown trainer {name!r}; {_closest(name, {*own, *plugins}, 'nnUNetTrainer')}")


def _closest(name: str, known: Collection[str], kind: str) -> str:
    close = get_close_matches(name, sorted(known), n=3)
    usual = sorted(f"{kind}{network}" for network in NETWORKS if f"{kind}{network}" in known)
    return f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(usual)} and others"


def run_demo(folder: Path, data: Path | None, planner: str, trainer: str) -> Path:
    """Plan, preprocess, train, predict, evaluate and report.

    Args:
        folder: working folder, in which nnU-Net's three folders are created.
        data: dataset in nnU-Net's raw layout; None to generate one from nilearn's template.
        planner: a planner of this package or of an installed plugin.
        trainer: a trainer of this package or of an installed plugin.

    Returns:
        the HTML report.

    Raises:
        ValueError: if there is no such planner or trainer.
        FileNotFoundError: if ``data`` is not a dataset in nnU-Net's raw layout.
        RuntimeError: if one of nnU-Net's commands fails.
    """
    start = time.monotonic()
    if planner not in planner_names():
        raise ValueError(f"unknown planner {planner!r}; {_closest(planner, planner_names(), 'nnUNetPlanner')}")
    _check_trainer(trainer)
    folder = Path(folder).absolute()
    raw = Path(data).absolute().parent if data else folder / "raw"
    if data and not (Path(data) / "dataset.json").is_file():
        raise FileNotFoundError(f"{data} has no dataset.json, so it is not a dataset in nnU-Net's raw layout")
    if data and not re.fullmatch(r"Dataset\d{3}_.+", Path(data).absolute().name):
        raise ValueError(
            f"{data} is not called DatasetNNN_NAME, as nnU-Net's datasets are; rename it, or convert a dataset of the "
            "Decathlon by nnUNetv2_convert_MSD_dataset"
        )
    for name in ("preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    dataset = Path(data).absolute() if data else make_dataset(raw)
    number = int(dataset.name[7:10])
    plans = plans_name(planner)

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = max(1, min(4, available_cores() - 1))
    environment = {
        **os.environ,
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    # nnU-Net cannot plan with 0 augmentation workers; in training on CPU, the network needs the cores
    planning = {**environment, "nnUNet_n_proc_DA": "1"}
    training = {**environment, "nnUNet_n_proc_DA": "0" if device == "cpu" else str(workers)}
    common = f"-tr {trainer} -p {plans}"
    _run(f"nnUNetv2_plan_and_preprocess -d {number} -pl {planner} -npfp {workers} --no_pp", planning)
    planned = json.loads((folder / "preprocessed" / dataset.name / f"{plans}.json").read_text())["configurations"]
    configuration = "3d_fullres" if "3d_fullres" in planned else "2d"
    _run(f"nnUNetv2_preprocess -d {number} -c {configuration} -plans_name {plans} -np {workers}", planning)
    _run(f"nnUNetv2_train {number} {configuration} 0 {common} -device {device}", training)

    model = folder / "results" / dataset.name / f"{trainer}__{plans}__{configuration}"
    images, labels = dataset / "imagesTs", dataset / "labelsTs"
    predictions = None
    if images.is_dir() and any(images.iterdir()):
        predictions = folder / "predictions" / dataset.name
        _run(
            f"nnUNetv2_predict -d {number} -c {configuration} -f 0 {common} -i {shlex.quote(str(images))} "
            f"-o {shlex.quote(str(predictions))} -device {device} -npp 1 -nps 1",
            training,
        )
    if predictions and labels.is_dir():
        _run(
            f"nnUNetv2_evaluate_folder {shlex.quote(str(labels))} {shlex.quote(str(predictions))} "
            f"-djfile {shlex.quote(str(model / 'dataset.json'))} -pfile {shlex.quote(str(model / 'plans.json'))} -np 1",
            training,
        )
        report = write_report(model / "fold_0", folder / "report.html", predictions, images, labels=labels)
    else:
        report = write_report(
            model / "fold_0", folder / "report.html", images=dataset / "imagesTr", labels=dataset / "labelsTr"
        )
    typer.secho(f"\ndone in {(time.monotonic() - start) / 60:.1f} minutes: {report}", bold=True)
    return report
