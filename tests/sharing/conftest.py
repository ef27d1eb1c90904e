"""Trained models for the tests of sharing: fold 0 is trained briefly; other folds are freshly initialised."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.trainers.trainer import TransformerTrainer
from tests.conftest import light_nnunet, set_nnunet_folders
from tests.trainers.conftest import CPU, PLANS, TRAINER, prepare, train

MODEL = f"{TRAINER}__{PLANS}__3d_fullres"


def initialise(folder: Path, fold: int = 0, configuration: str = "3d_fullres", trainer: str = TRAINER) -> Path:
    """Write a trainer's checkpoint before any training step, and return the model's folder."""
    torch.manual_seed(fold + len(configuration))
    trained = get_trainer_from_args("900", configuration, fold, trainer, PLANS, device=CPU)
    # nnU-Net looks at the endings of prepared cases, and needs none here
    Path(trained.preprocessed_dataset_folder).mkdir(exist_ok=True)
    (Path(trained.preprocessed_dataset_folder) / "ball_0.b2nd").touch()
    trained.initialize()
    trained.logger.log("ema_fg_dice", np.float64(0.5), 0)
    trained._best_ema = np.float32(0.5)
    trained.save_checkpoint(str(Path(trained.output_folder) / "checkpoint_final.pth"))
    model = Path(trained.output_folder_base)
    for name in ("dataset_fingerprint.json", "dataset.json"):
        shutil.copyfile(folder / "preprocessed" / "Dataset900_Balls" / name, model / name)
    shutil.copyfile(folder / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json", model / "plans.json")
    return model


def some_images(folder: Path, target: Path, count: int = 1) -> Path:
    """Create a folder with the first cases of the dataset."""
    target.mkdir()
    for case in range(count):
        for path in (folder / "raw" / "Dataset900_Balls" / "imagesTr").glob(f"ball_{case}_*"):
            shutil.copyfile(path, target / path.name)
    return target


def stock_predict(
    model: Path, images: Path, output: Path, *folds: int, previous: Path | None = None, **options
) -> Path:
    """Predict as nnUNetv2_predict -npp 0 -nps 0 does, with one process to list the images rather than twelve."""
    settings = {"use_mirroring": options.pop("mirroring", True), "tile_step_size": options.pop("step_size", 0.5)}
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, **settings)
    predictor.initialize_from_trained_model_folder(str(model), folds, "checkpoint_final.pth")
    ending = predictor.dataset_json["file_ending"]
    cases = create_lists_from_splitted_dataset_folder(str(images), ending, num_processes=1)
    output.mkdir()
    names = [str(output / Path(files[0]).name.removesuffix(f"_0000{ending}")) for files in cases]
    stage = None if previous is None else str(previous)
    predictor.predict_from_files_sequential(cases, names, folder_with_segs_from_prev_stage=stage, **options)
    return output


def stock_command(monkeypatch, folders: Path, images: Path, output: Path, *more: object) -> Path:
    """Run nnU-Net's own command in this process, without worker processes."""
    environment(folders, monkeypatch)
    model = ["-d", 900, "-tr", TRAINER, "-p", PLANS, "-c", "3d_fullres"]
    arguments = [*model, "-i", images, "-o", output, "-device", "cpu", "-npp", 0, "-nps", 0, *more]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *map(str, arguments)])
    predict_entry_point()
    return output


def invoke(*arguments: object):
    """Run the plugin's command in this process."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def environment(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set nnU-Net's folders, and epochs of two iterations."""
    set_nnunet_folders(folders, monkeypatch)
    monkeypatch.setattr(TransformerTrainer, "default_iterations", 2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Create nnU-Net's folders with a model of two folds, the first trained."""
    folders = tmp_path_factory.mktemp("trained")
    with light_nnunet(), pytest.MonkeyPatch.context() as monkeypatch:
        environment(folders, monkeypatch)
        prepare(folders, monkeypatch)
        train()
        initialise(folders, 1)
    return folders


@pytest.fixture(scope="session")
def model(trained):
    """Return the folder of that model."""
    return trained / "results" / "Dataset900_Balls" / MODEL


@pytest.fixture(scope="session")
def package(model, tmp_path_factory):
    """Make a package of both folds."""
    folder = tmp_path_factory.mktemp("package") / "package"
    result = invoke("package", model, "-f", 0, 1, "-o", folder, "--licence", "CC-BY-4.0")
    assert result.exit_code == 0, result.output
    assert "nothing was unpickled" in result.output
    return folder


@pytest.fixture
def copied(package, tmp_path):
    """Copy the package, to damage it."""
    return Path(shutil.copytree(package, tmp_path / "copied"))


def add_cascade(folders: Path) -> None:
    """Add the two stages of a cascade to the plan, as nnU-Net plans them for large images."""
    path = folders / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    configurations = plans["configurations"]
    configurations["3d_lowres"] = {
        **configurations["3d_fullres"],
        "spacing": [1.25, 1.2, 1.25],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))
