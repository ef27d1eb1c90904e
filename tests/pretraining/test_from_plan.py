"""Preparation and pretraining for a plan: folds, order of axes, spacing, network."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_encoder, create_network
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.pretraining.data import read_index
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.folds import validation_cases
from nnunet_transformers.pretraining.data.index import PreparedCase, PreparedIndex
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.encoder_checkpoint import encoder_checkpoint
from nnunet_transformers.pretraining.from_plan import model_arguments
from nnunet_transformers.weights import initialise, load_encoder
from tests.conftest import write_dataset

from .recipes import short_run

PLANS = "nnUNetQTUNetTPlans"
ROOT = "--trainer.default_root_dir"


@pytest.fixture
def planned(nnunet_folders, monkeypatch):
    source = write_dataset(nnunet_folders / "raw", cases=10)
    # the axis of largest spacing is not the first, so nnU-Net transposes
    for file in source.rglob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image.SetSpacing((3.0, 1.0, 1.0))
        sitk.WriteImage(image, str(file))
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900], "nnUNetPlannerQTUNetT", gpu_memory_target_in_gb=2)
    return source


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_prepared_and_trained_as_planned(planned, tmp_path):
    prepared = tmp_path / "prepared"
    result = invoke("pretrain", "prepare", planned, prepared, "--fold", 1, "-d", 900, "-p", PLANS)
    assert result.exit_code == 0, result.output
    assert "8 images, 0 skipped, 2 left out for validation" in result.output
    configuration = PlannedConfiguration.load("900", PLANS, "3d_fullres").configuration
    index = read_index(prepared)
    assert list(index.spacing) == configuration.spacing == [3.0, 1.0, 1.0]
    # transposed from 20x24x20 voxels, whose last axis has the largest spacing
    assert {case.shape for case in index.cases} == {(1, 20, 20, 24)}
    left_out = set(validation_cases(planned, 1))
    assert left_out.isdisjoint(case.name for case in index.cases)

    fit = ["pretrain", "fit", "--config", "qt_ssl_in_task", "-d", 900, "-p", PLANS]
    fit += short_run(prepared, tmp_path, {"data.init_args.samples_per_epoch": 2})
    result = invoke(*fit)
    assert result.exit_code == 0, result.output
    checkpoint = load_encoder(tmp_path / "encoder.pth")
    assert list(checkpoint.patch_size) == configuration.patch_size
    assert checkpoint.recipe["batch_size"] == 2
    assert not any(name.startswith("_") for name in checkpoint.recipe)

    # a second run in the folder is refused, and so is an encoder that replaced the attached one
    assert "already holds a run" in str(invoke(*fit).exception)
    attach = ["attach", tmp_path / "encoder.pth", "-d", 900, "-p", PLANS, "-o", f"{PLANS}_ssl", "-c", "3d_fullres"]
    result = invoke(*attach)
    assert result.exit_code == 0, result.output
    assert "adapted: 0 tensors" in result.output
    assert "note:" not in result.output
    replace(checkpoint, spacing=(1.0, 1.0, 1.0)).save(tmp_path / "other.pth")
    result = invoke("attach", tmp_path / "other.pth", *attach[2:-4], "-o", f"{PLANS}_other", "-c", "3d_fullres")
    assert "note: the images were prepared with spacing [1.0, 1.0, 1.0], the plan has [3.0, 1.0, 1.0]" in result.output
    result = invoke(*fit, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert result.exit_code == 0, result.output
    attached = PlannedConfiguration.load("900", f"{PLANS}_ssl", "3d_fullres").configuration.configuration[
        "initialisation"
    ]
    network = create_network("qt_unet_tiny", 1, 3, checkpoint.patch_size, **checkpoint.overrides)
    with pytest.raises(ValueError, match="another file than when the plan was written"):
        initialise(network, attached)

    # MAE, whose encoder is the planned one too
    folder = tmp_path / "mae"
    result = invoke(*(argument if argument != "qt_ssl_in_task" else "mae" for argument in fit), f"{ROOT}={folder}")
    assert result.exit_code == 0, result.output
    result = invoke("attach", folder / "encoder.pth", *attach[2:-4], "-o", f"{PLANS}_mae", "-c", "3d_fullres")
    assert result.exit_code == 0, result.output
    assert "adapted: 0 tensors" in result.output
    assert "encoder." not in result.output.partition("fresh")[2] and "stem." not in result.output.partition("fresh")[2]


def test_network_of_a_plan(planned):
    planned = PlannedConfiguration.load("900", PLANS, "3d_fullres")
    known = ("network", "network_overrides", "patch_size_2d", "patch_size_3d")
    arguments = model_arguments(planned, known)
    assert list(arguments) == ["network", "network_overrides", "patch_size_2d", "patch_size_3d"]
    assert arguments["network"] == "qt_unet_tiny"
    assert arguments["patch_size_2d"] == arguments["patch_size_3d"][1:]
    with pytest.raises(ValueError, match="needs volumes, but 2d is a 2D configuration"):
        model_arguments(PlannedConfiguration.load("900", PLANS, "2d"), known)
    with pytest.raises(ValueError, match="has no 3d_lowres"):
        PlannedConfiguration.load("900", PLANS, "3d_lowres")
    other = json.loads(json.dumps(planned.plans))
    other["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "torch.nn.Conv3d"
    with pytest.raises(ValueError, match="is not of this package"):
        model_arguments(replace(planned, plans=other), known)


@pytest.mark.parametrize("planner,plans", [(None, "nnUNetPlans"), ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans")])
def test_stock_plans(planned, planner, plans, tmp_path):
    """The encoder of a plan of nnU-Net's, and the weights that its own trainers then load with -pretrained_weights."""
    plan_experiments([900], *[planner] if planner else [])
    planned = PlannedConfiguration.load("900", plans, "3d_fullres")
    arguments = model_arguments(planned, ("network", "network_overrides", "patch_size", "input_channels"))
    stock = planned.build_network(deep_supervision=True)
    assert arguments["network"] == type(stock).__name__
    encoder = create_encoder(
        arguments["network"], arguments["input_channels"], arguments["patch_size"], **arguments["network_overrides"]
    )
    index = PreparedIndex(
        (PreparedCase("a", (1, 20, 20, 24)),), (), ("image",), (3.0, 1.0, 1.0), ("ZScoreNormalization",)
    )
    encoder_checkpoint(encoder, "MAE", arguments, index, {}).save(tmp_path / "encoder.pth")
    result = invoke("attach", tmp_path / "encoder.pth", "-d", 900, "-p", plans, "-o", f"{plans}_mae")
    assert result.exit_code == 0, result.output
    assert "adapted: 0 tensors" in result.output and "unused: 0 tensors" in result.output
    assert "encoder." not in result.output.partition("fresh")[2]
    assert "2d is left unchanged: the weights are of a 3D network, this one is 2D" in result.output
    result = invoke(
        "export-full", tmp_path / "encoder.pth", "-d", 900, "-p", plans, "-c", "3d_fullres", "-o", tmp_path / "full.pth"
    )
    assert result.exit_code == 0, result.output
    load_pretrained_weights(stock, tmp_path / "full.pth")
    weights = encoder.state_dict()
    for name, value in stock.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, weights[name]), name


def test_folds(nnunet_folders):
    source = write_dataset(nnunet_folders / "raw", cases=10)
    default = [set(validation_cases(source, fold)) for fold in range(5)]
    assert set.union(*default) == {case.name for case in find_cases(source).cases}
    folder = nnunet_folders / "preprocessed" / source.name
    folder.mkdir()
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["ball_1"], "val": ["ball_3"]}]))
    assert validation_cases(source, 0) == ["ball_3"]
    with pytest.raises(ValueError, match="no fold 1; folds are 0 to 0"):
        validation_cases(source, 1)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["ball_1"], "val": ["ball_33"]}]))
    with pytest.raises(ValueError, match=r"validates on ball_33, of which .* has no image"):
        validation_cases(source, 0)


class TestFiles:
    def write(self, path, shape=(16, 20), channels=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (*shape, channels) if channels > 1 else shape
        pixels = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=channels > 1), str(path))

    def test_names_with_dots_and_folders(self, tmp_path):
        for name in ("1.2.3.png", "1.2.4.png", "v1.0/a.png"):
            self.write(tmp_path / "raw" / name)
        stored, _ = prepare(tmp_path / "raw", tmp_path / "prepared", patch_size=(16, 16))
        assert [case.name for case in stored] == ["1.2.3", "1.2.4", "v1.0__a"]
        self.write(tmp_path / "raw" / "1.2.3.tif")
        stored, _ = prepare(tmp_path / "raw", tmp_path / "prepared", patch_size=(16, 16))
        assert [case.key for case in stored] == ["1.2.3.png", "1.2.3.tif", "1.2.4.png", "v1.0/a.png"]
        assert stored[1].name.startswith("1.2.3-")

    def test_colour_images(self, tmp_path):
        for name in ("a", "b"):
            self.write(tmp_path / "raw" / f"{name}.png", channels=3)
        self.write(tmp_path / "raw" / "grey.png")
        stored, skipped = prepare(tmp_path / "raw", tmp_path / "prepared", patch_size=(16, 16))
        assert [case.shape for case in stored] == [(3, 1, 16, 20)] * 2
        assert [(case.name, case.reason) for case in skipped] == [("grey", "has 1 channels, others 3")]

    def test_truncated_without_compression(self, tmp_path):
        (tmp_path / "raw").mkdir()
        volume = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32))
        for name in ("a", "b"):
            sitk.WriteImage(volume, str(tmp_path / "raw" / f"{name}.nii"))
        whole = (tmp_path / "raw" / "b.nii").read_bytes()
        (tmp_path / "raw" / "b.nii").write_bytes(whole[: len(whole) // 2])
        stored, skipped = prepare(tmp_path / "raw", tmp_path / "prepared", patch_size=(16, 16, 16))
        assert [case.name for case in stored] == ["a"]
        assert "cannot be read" in skipped[0].reason


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--data.init_args.batch_size=32", "--data.init_args.samples_per_epoch=3"],
            "an epoch of 3 samples is less than one step",
        ),
        (
            ["--data.init_args.batch_size=2", "--model.init_args.input_channels=2"],
            "have 1 channels, the network takes 2",
        ),
        (["--data.init_args.batch_size=2", "--trainer.max_epochs=-1"], "set --trainer.max_epochs"),
        (["--data.init_args.batch_size=2", "--trainer.enable_checkpointing=false"], "`ModelCheckpoint`"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    prepare(write_dataset(tmp_path / "raw", cases=3), tmp_path / "prepared", patch_size=(16, 16, 16))
    settings = {
        "data.init_args.folder": tmp_path / "prepared",
        "data.init_args.num_workers": 0,
        "model.init_args.patch_size": "[16,16,16]",
        "model.init_args.network_overrides": '{"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}',
        "trainer.accumulate_grad_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path,
        "trainer.logger": "false",
    }
    given = [f"--{key}={value}" for key, value in settings.items()]
    command = ["nnunet-transformers", "pretrain", "fit", "--config", "qt_ssl_in_task", *given, *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "encoder.pth").exists()
