"""`nnunet-transformers predict` against nnU-Net's commands, with the same arguments and models."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.inference import predict_from_raw_data

from nnunet_transformers import cli
from nnunet_transformers.cli._mistakes import Interrupted
from nnunet_transformers.inference.command import build_parser
from nnunet_transformers.inference.uncertainty import UncertaintyMaps
from tests.conftest import write_dataset
from tests.sharing.conftest import environment, initialise, invoke, some_images
from tests.trainers.conftest import PLANNER, PLANS, TRAINER

SEQUENTIAL = ("-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar")


@pytest.fixture
def folders(planned, monkeypatch):
    """Set nnU-Net's folders."""
    environment(planned, monkeypatch)
    # nnU-Net's commands take all cores
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    # and twelve processes to list two files
    listed = predict_from_raw_data.create_lists_from_splitted_dataset_folder
    monkeypatch.setattr(
        predict_from_raw_data,
        "create_lists_from_splitted_dataset_folder",
        lambda folder, ending: listed(folder, ending, num_processes=1),
    )
    return planned


def named(configuration: str = "3d_fullres") -> tuple:
    """Return the arguments that select a model."""
    return ("-d", 900, "-c", configuration, "-tr", TRAINER, "-p", PLANS)


def ours(output: Path, images: Path, *arguments: object) -> Path:
    result = invoke("predict", "-i", images, "-o", output, *arguments)
    assert result.exit_code == 0, result.output
    return output


def theirs(monkeypatch, output: Path, images: Path, *arguments: object) -> Path:
    words = ["-i", images, "-o", output, *arguments]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *map(str, words)])
    is_folder = "-m" in arguments
    (
        predict_from_raw_data.predict_entry_point_modelfolder
        if is_folder
        else predict_from_raw_data.predict_entry_point
    )()
    return output


def assert_same(ours: Path, theirs: Path, probabilities: bool = False) -> None:
    """Expect the same files; labels may differ in 0.1 % of voxels, probabilities by rounding."""
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    names = [path.name for path in theirs.glob("*.nii.gz")]
    assert names
    for name in names:
        one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (ours, theirs))
        assert len(np.unique(other)) > 1
        assert (one != other).mean() <= 1e-3
        if probabilities:
            name = name.replace(".nii.gz", ".npz")
            one, other = (np.load(folder / name)["probabilities"] for folder in (ours, theirs))
            np.testing.assert_allclose(one, other, atol=2e-3)
    for name in ("plans.json", "dataset.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    said = [json.loads((folder / "predict_from_raw_data_args.json").read_text()) for folder in (ours, theirs)]
    for arguments in said:
        del arguments["output_folder_or_list_of_truncated_output_files"]
    assert said[0] == said[1]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_same_arguments_same_files(folders, models, tmp_path, monkeypatch, configuration):
    images = some_images(folders, tmp_path / "images", 2)
    folds = (0, 1) if configuration == "3d_fullres" else (0,)
    arguments = (*named(configuration), "-f", *folds, "--save_probabilities", *SEQUENTIAL)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *arguments, "-step_size", 0.7)
    for batch_size in ((), ("--batch-size", 3)):
        output = tmp_path / f"ours{len(batch_size)}"
        assert_same(ours(output, images, *arguments, "-step_size", 0.7, *batch_size), expected, True)


def test_flat_images_with_a_2d_model(folders, models, tmp_path, monkeypatch):
    """A single slice, as a volume of one or without the third axis: its segmentation has its shape and place."""
    images, noise = tmp_path / "images", np.random.default_rng(0).normal(size=(1, 26, 22)).astype(np.float32)
    images.mkdir()
    for name, array in (("volume", noise), ("slice", noise[0])):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.9, 1.1, 5.0)[: image.GetDimension()])
        image.SetOrigin((3.0, -4.0, 7.0)[: image.GetDimension()])
        sitk.WriteImage(image, str(images / f"{name}_0000.nii.gz"))
    arguments = (*named("2d"), "-f", 0, "--save_probabilities", *SEQUENTIAL)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *arguments)
    got = ours(tmp_path / "ours", images, *arguments)
    assert_same(got, expected, True)
    for name in ("volume", "slice"):
        image, labels = (sitk.ReadImage(str(path)) for path in (images / f"{name}_0000.nii.gz", got / f"{name}.nii.gz"))
        assert labels.GetSize() == image.GetSize()
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(labels, geometry)(), getattr(image, geometry)(), atol=1e-6)


def test_a_folder_and_worker_processes(folders, models, tmp_path, monkeypatch):
    images = some_images(folders, tmp_path / "images", 2)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *named(), "-f", 1, *SEQUENTIAL)
    arguments = ("-m", models["3d_fullres"], "-f", 1, "-device", "cpu", "-npp", 1, "-nps", 1)
    got = ours(tmp_path / "ours", images, *arguments, "--batch-size", 1)
    # passes of one patch are nnU-Net's own
    for name in ("ball_0.nii.gz", "ball_1.nii.gz"):
        assert (got / name).read_bytes() == (expected / name).read_bytes()
    without = ours(tmp_path / "without", images, f"-m{models['3d_fullres']}", "-f", 1, *SEQUENTIAL)
    assert_same(without, expected)


def test_cascade(folders, models, tmp_path, monkeypatch):
    images = some_images(folders, tmp_path / "images")
    lowres = (*named("3d_lowres"), "-f", 0, *SEQUENTIAL)
    assert_same(
        ours(tmp_path / "ours_lowres", images, *lowres),
        stage := theirs(monkeypatch, tmp_path / "lowres", images, *lowres),
    )
    cascade = (*named("3d_cascade_fullres"), "-f", 0, "--save_probabilities", *SEQUENTIAL)
    with_stage = (*cascade, "-prev_stage_predictions", stage)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *with_stage)
    assert_same(ours(tmp_path / "ours", images, *with_stage, "--batch-size", 3), expected, True)
    # another first stage is another segmentation
    empty = sitk.ReadImage(str(stage / "ball_0.nii.gz")) * 0
    (tmp_path / "empty").mkdir()
    sitk.WriteImage(empty, str(tmp_path / "empty" / "ball_0.nii.gz"))
    other = ours(tmp_path / "other", images, *cascade, "-prev_stage_predictions", tmp_path / "empty")
    probabilities = [np.load(folder / "ball_0.npz")["probabilities"] for folder in (other, expected)]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.01

    with pytest.raises(RuntimeError, match=r"requires the segmentations of the previous stage"):
        ours(tmp_path / "without", images, *cascade)


def test_regions(folders, tmp_path, monkeypatch):
    environment(tmp_path, monkeypatch)
    labels = {"background": 0, "all": [1, 2], "small": 2}
    write_dataset(tmp_path / "raw", cases=1, labels=labels, regions_class_order=[1, 2])
    folder = tmp_path / "preprocessed" / "Dataset900_Balls"
    folder.mkdir()
    fingerprint = folders / "preprocessed" / folder.name / "dataset_fingerprint.json"
    (folder / fingerprint.name).write_text(fingerprint.read_text())
    plan_experiments([900], PLANNER, gpu_memory_target_in_gb=2)
    initialise(tmp_path)
    images = some_images(tmp_path, tmp_path / "images")
    arguments = (*named(), "-f", 0, "--save_probabilities", *SEQUENTIAL)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *arguments)
    assert_same(ours(tmp_path / "ours", images, *arguments, "--batch-size", 5), expected, True)


def test_continue_prediction(folders, models, tmp_path, monkeypatch):
    images = some_images(folders, tmp_path / "images", 2)
    arguments = (*named("2d"), "-f", 0, *SEQUENTIAL, "--continue_prediction")
    output = tmp_path / "ours"
    output.mkdir()
    (output / "ball_0.nii.gz").write_text("done before")
    ours(output, images, *arguments)
    assert (output / "ball_0.nii.gz").read_text() == "done before"
    assert (output / "ball_1.nii.gz").stat().st_size > 100
    # maps that are asked for are missing
    (output / "ball_1.nii.gz").unlink()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(UncertaintyMaps, "write", Mock(side_effect=KeyboardInterrupt))
        ours(output, images, *arguments, "--save_uncertainty")
    assert not (output / "ball_1.nii.gz").exists()
    ours(output, images, *arguments, "--save_uncertainty")
    assert {path.name for path in (output / "entropy").iterdir()} == {"ball_0.nii.gz", "ball_1.nii.gz"}
    assert (output / "ball_0.nii.gz").stat().st_size > 100


def test_mirroring_that_a_checkpoint_allows(folders, models, tmp_path, monkeypatch):
    path = models["2d"] / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "inference_allowed_mirroring_axes": (0, 1)}, path.with_name("mirrored.pth"))
    images = some_images(folders, tmp_path / "images")
    arguments = (*named("2d"), "-f", 0, "-chk", "mirrored.pth", "--save_probabilities", *SEQUENTIAL)
    expected = theirs(monkeypatch, tmp_path / "theirs", images, *arguments)
    assert_same(ours(tmp_path / "ours", images, *arguments), expected, True)
    plain = ours(tmp_path / "plain", images, *arguments, "--disable_tta")
    probabilities = [np.load(folder / "ball_0.npz")["probabilities"] for folder in (plain, expected)]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 0.01


class TestMistakes:
    @pytest.fixture
    def said(self, folders, models, tmp_path, monkeypatch, capsys):
        """Return a function that runs the command with changed or omitted arguments and returns its standard error."""
        images = some_images(folders, tmp_path / "images")

        def run(**changed: object) -> str:
            arguments = {"i": images, "o": tmp_path / "out", "d": 900, "c": "2d", "tr": TRAINER, "p": PLANS, "f": 0}
            arguments = {**arguments, "device": "cpu", "npp": 0, "nps": 0, **changed}
            words = [str(w) for name, v in arguments.items() if v is not None for w in (f"-{name}", v)]
            monkeypatch.setattr(sys, "argv", ["nnunet-transformers", "predict", *words])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert stopped.value.code == 1
            (line,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
            return line

        return run

    def test_arguments(self, said):
        assert (
            said(i=None) == "error: the following arguments are required: -i; see `nnunet-transformers predict --help`"
        )
        assert "unrecognized arguments: -no_such 1" in said(no_such=1)
        assert "-device must be either cpu, mps or cuda" in said(device="tpu")
        for part in (1, -1):  # Python counts negative indices from the end
            assert (
                f"-part_id {part} must be from 0 to below -num_parts 1; see `nnunet-transformers predict --help`"
                in said(part_id=part, num_parts=1)
            )
        assert "-f 'zero' is neither a number nor 'all'" in said(f="zero")
        assert "-npp 0 -nps 1: both are 0, without -num_parts, or neither" in said(nps=1)
        if not torch.cuda.is_available():
            assert said(device="cuda") == "error: -device cuda is not available; this machine has cpu"

    def test_models(self, said):
        assert "901" in said(d=901)
        assert "3d_nothing has no plans.json; specify -d, -tr, -p and -c" in said(c="3d_nothing")
        assert "2d has no fold_3/checkpoint_final.pth; there is fold_0/checkpoint_final.pth" in said(f=3)
        assert "2d has no fold_0/checkpoint_best.pth; there is " in said(chk="checkpoint_best.pth")

    def test_images(self, said, tmp_path):
        images = tmp_path / "images"
        assert "error: no such folder: " in said(i=tmp_path / "none")
        (images / "scan.nii.gz").touch()
        assert "scan.nii.gz: no channel number in its name; rename it to scan_0000.nii.gz" in said(i=images)
        (images / "scan.nii.gz").rename(images / "scan_0001.nii.gz")
        assert "images/scan: _0000 (MRI) is missing; there is scan_0001.nii.gz" in said(i=images)
        for path in images.iterdir():
            path.unlink()
        (images / "scan.mha").touch()
        assert "scan.mha: the model reads .nii.gz files; convert the image" in said(i=images)

    def test_checkpoint_with_more_than_weights(self, said, models):
        model = models["2d"]
        path = model / "fold_0" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        torch.save({**content, "more": Harmful()}, path.with_name("harmful.pth"))
        assert "Give --trust only if you know who made it" in said(chk="harmful.pth")
        assert not os.environ.get("HARMED")
        path.with_name("truncated.pth").write_bytes(path.read_bytes()[:1000])
        assert "truncated.pth is truncated or not a checkpoint" in said(chk="truncated.pth")
        torch.save({"weights": content["network_weights"]}, path.with_name("foreign.pth"))
        assert "foreign.pth is no checkpoint of nnU-Net's trainer" in said(chk="foreign.pth")
        weight = max(content["network_weights"].values(), key=torch.numel)
        damaged = bytearray(path.read_bytes())
        damaged[damaged.index(weight.numpy().tobytes()) + 7] ^= 1
        path.with_name("damaged.pth").write_bytes(damaged)
        assert "damaged.pth is damaged: " in said(chk="damaged.pth")
        weight[0] = torch.nan
        torch.save(content, path.with_name("diverged.pth"))
        assert "diverged.pth is damaged, or of a training that diverged: " in said(chk="diverged.pth")


class Harmful:
    """Object whose pickle runs code."""

    def __reduce__(self):
        return os.putenv, ("HARMED", "1")


def test_help_has_both_commands_options():
    result = invoke("predict", "--help")
    assert result.exit_code == 0
    for option in ("--batch-size", "--compile", "-prev_stage_predictions", "--not_on_device"):
        assert option in result.output
    assert "[-h] -i I -o O -m M" in " ".join(invoke("predict", "-m", "MODEL", "-h").output.split())


class Parsed(Exception):
    """Raised where nnU-Net's entry points parse, to stop them there."""


def options_of(parser: argparse.ArgumentParser) -> dict:
    """Return all properties of a parser's options but their help."""
    properties = ("option_strings", "default", "type", "nargs", "required", "choices", "const")
    return {
        action.dest: {"class": type(action), **{name: getattr(action, name) for name in properties}}
        for action in parser._actions
    }


@pytest.mark.parametrize("processes", [None, "7", "many"])
@pytest.mark.parametrize("entry_point", ["predict_entry_point", "predict_entry_point_modelfolder"])
def test_options_are_nnunets(monkeypatch, entry_point, processes):
    """A new option of nnU-Net, another default or another alias fails here."""
    for variable in ("nnUNet_npp", "nnUNet_nps"):
        monkeypatch.delenv(variable, raising=False)
        if processes is not None:
            monkeypatch.setenv(variable, processes)
    captured: list[argparse.ArgumentParser] = []

    def parse_args(parser: argparse.ArgumentParser) -> None:
        captured.append(parser)
        raise Parsed

    with monkeypatch.context() as patched, pytest.raises(Parsed):
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        getattr(predict_from_raw_data, entry_point)()
    (stock,) = captured
    own, expected = options_of(build_parser(entry_point.endswith("modelfolder"))), options_of(stock)
    assert own["device"].pop("default") == "auto" and expected["device"].pop("default") == "cuda"
    assert own == expected
    assert len(own) > 15
