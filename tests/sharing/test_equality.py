"""A package's predictions equal those of nnU-Net's commands from the same checkpoints, byte for byte."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

from tests.conftest import write_dataset
from tests.trainers.conftest import PLANNER

from .conftest import add_cascade, environment, initialise, invoke, some_images, stock_command, stock_predict


def predict(package, images, output, *more):
    result = invoke("package", "predict", package, images, output, "--device", "cpu", *more)
    assert result.exit_code == 0, result.output
    return output


def assert_equal(ours, theirs, names=("ball_0",), probabilities=False):
    for name in names:
        assert (ours / f"{name}.nii.gz").read_bytes() == (theirs / f"{name}.nii.gz").read_bytes()
        if probabilities:
            arrays = [np.load(folder / f"{name}.npz")["probabilities"] for folder in (ours, theirs)]
            np.testing.assert_array_equal(*arrays)


@pytest.fixture
def planned(trained, tmp_path, monkeypatch):
    """Copy the shared dataset and its plan, without its trained models."""
    environment(tmp_path, monkeypatch)
    for name in ("raw", "preprocessed"):
        shutil.copytree(trained / name, tmp_path / name, dirs_exist_ok=True)
    return tmp_path


def test_the_command(trained, package, tmp_path, monkeypatch):
    images = some_images(trained, tmp_path / "images")
    theirs = stock_command(monkeypatch, trained, images, tmp_path / "theirs", "-f", 0, 1)
    ours = predict(package, images, tmp_path / "ours", "-f", 0, 1)
    assert_equal(ours, theirs)
    assert sorted(path.name for path in ours.iterdir()) == ["ball_0.nii.gz"]


def test_folds_and_options(trained, model, package, tmp_path):
    images = some_images(trained, tmp_path / "images", 2)
    theirs = stock_predict(model, images, tmp_path / "theirs", 1, mirroring=False, step_size=0.9)
    ours = predict(package, images, tmp_path / "ours", "-f", 1, "--disable_tta", "-step_size", 0.9)
    assert_equal(ours, theirs, ("ball_0", "ball_1"))
    other = predict(package, images, tmp_path / "mirrored", "-f", 1)
    assert (ours / "ball_0.nii.gz").read_bytes() != (other / "ball_0.nii.gz").read_bytes()


def test_probabilities(trained, model, package, tmp_path):
    images = some_images(trained, tmp_path / "images")
    theirs = stock_predict(model, images, tmp_path / "theirs", 0, mirroring=False, save_probabilities=True)
    ours = predict(package, images, tmp_path / "ours", "-f", 0, "-npz", "--disable_tta")
    assert_equal(ours, theirs, probabilities=True)


def test_regions_and_several_channels(trained, tmp_path, monkeypatch):
    environment(tmp_path, monkeypatch)
    labels = {"background": 0, "all": [1, 2], "small": 2}
    write_dataset(tmp_path / "raw", cases=1, labels=labels, channels=2, regions_class_order=[1, 2])
    # the shared dataset's fingerprint, for two channels
    folder = tmp_path / "preprocessed" / "Dataset900_Balls"
    folder.mkdir()
    fingerprint = json.loads((trained / "preprocessed" / folder.name / "dataset_fingerprint.json").read_text())
    channels = fingerprint["foreground_intensity_properties_per_channel"]
    channels["1"] = channels["0"]
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    model = initialise(tmp_path)
    assert invoke("package", model, "-o", tmp_path / "package").exit_code == 0
    images = some_images(tmp_path, tmp_path / "images")
    theirs = stock_predict(model, images, tmp_path / "theirs", 0, mirroring=False, save_probabilities=True)
    ours = predict(tmp_path / "package", images, tmp_path / "ours", "-npz", "--disable_tta")
    assert_equal(ours, theirs, probabilities=True)


def test_cascade(planned, tmp_path):
    add_cascade(planned)
    lowres = initialise(planned, configuration="3d_lowres")
    cascade = initialise(planned, configuration="3d_cascade_fullres")
    assert invoke("package", cascade, "-f", 0, "-o", tmp_path / "package").exit_code == 0
    images = some_images(planned, tmp_path / "images")
    stage = stock_predict(lowres, images, tmp_path / "stage", 0, mirroring=False)
    theirs = stock_predict(cascade, images, tmp_path / "theirs", 0, mirroring=False, previous=stage)
    assert_equal(predict(tmp_path / "package", images, tmp_path / "ours", "--disable_tta"), theirs)

    moved = tmp_path / "elsewhere" / lowres.name
    shutil.move(lowres, moved)
    with pytest.raises(FileNotFoundError, match=r"takes the segmentations of 3d_lowres.*--previous-stage"):
        invoke("package", cascade, "-o", tmp_path / "other")
    assert not list(tmp_path.glob("other*"))
    assert invoke("package", cascade, "-o", tmp_path / "other", "--previous-stage", moved).exit_code == 0
    stages = json.loads((tmp_path / "other" / "models.json").read_text())["models"][0]
    assert stages["previous"]["configuration"] == "3d_lowres"


def test_ensemble_of_configurations(planned, tmp_path):
    models = [initialise(planned, configuration=name) for name in ("2d", "3d_fullres")]
    assert invoke("package", *models, "-f", 0, "-o", tmp_path / "package").exit_code == 0
    images = some_images(planned, tmp_path / "images")
    parts = [stock_predict(m, images, tmp_path / m.name, 0, mirroring=False, save_probabilities=True) for m in models]
    # nnUNetv2_ensemble reads both from the first folder, where nnUNetv2_predict leaves them
    ensemble_folders([str(part) for part in parts], str(tmp_path / "theirs"), True, num_processes=1)
    ours = predict(tmp_path / "package", images, tmp_path / "ours", "-npz", "--disable_tta")
    assert_equal(ours, tmp_path / "theirs", probabilities=True)

    said = json.loads((models[1] / "dataset.json").read_text())
    del said["channel_names"]
    for key in ("channel_names", "modality"):
        for model, name in zip(models, ("MRI", "CT"), strict=True):
            (model / "dataset.json").write_text(json.dumps({**said, key: {"0": name}}))
        with pytest.raises(ValueError, match=r"cannot be an ensemble: their dataset\.json differ in channel_names"):
            invoke("package", *models, "-o", tmp_path / "other")


def test_estimate_counts_what_a_run_does(trained, package, tmp_path):
    """The estimated number of passes is that of a real prediction of an image of that size."""
    import torch

    from nnunet_transformers.sharing import estimate, load_package, predict_folder

    models = load_package(package, torch.device("cpu"))
    said = estimate(models, (20, 24, 20), (1.0, 1.0, 1.0))
    passes = []
    models[0].predictor.network.register_forward_hook(lambda *_: passes.append(1))
    results = predict_folder(models, some_images(trained, tmp_path / "images"), tmp_path / "output")
    assert [result.problem for result in results] == [""]
    assert len(passes) == said.passes
    assert said.tiles * 2 * 8 == said.passes
    assert said.seconds > 0
    larger = estimate(models, (200, 240, 200), (1.0, 1.0, 1.0))
    assert larger.host_bytes - said.host_bytes > 4 * 200 * 240 * 200
    assert invoke("package", "estimate", package, "--size", "20,24,20", "--device", "cpu").output.startswith("20x")
