"""The command as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from nnunet_transformers import __version__, cli
from nnunet_transformers.cli import doctor
from nnunet_transformers.demo import pipeline
from nnunet_transformers.demo.dataset import LABELS, TEST_CASES, TRAIN_CASES, make_dataset
from nnunet_transformers.discovery import PLANNERS

from ..released import released_keys

ROOT = typer.main.get_command(cli.app)
COMMANDS = [
    (name, *more)
    for name, command in ROOT.commands.items()
    for more in [(), *((sub,) for sub in getattr(command, "commands", ()))]
]


def invoke(*arguments):
    """What the entry point does, in this process: output and exit code."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["nnunet-transformers", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_is_quick_to_start():
    code = "import sys; import nnunet_transformers.cli; print({'torch', 'nnunetv2'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_models():
    result = invoke("models", "--patch-size", "64,64", "--name", "qt_unet_tiny")
    assert "qt_unet_tiny" in result.output
    assert "5,4" in result.output
    result = invoke("models", "--patch-size", "32,32,32", "--name", "tiny")
    assert "without a 3D form: setr_pup_tiny" in result.output
    result = invoke("models", "--patch-size", "24,32,32", "--name", "_s")
    assert "primus_v2_s" in result.output
    assert "not at this patch: mednext_s, mednext_s_k5: " in result.output


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["models", "--patch-size", "ninety"], "is not a list of integers"),
        (["models", "--patch-size", "0,64"], "is not two or three positive integers"),
        (["pretrain", "prepare", ".", "out", "--patch-size", "96"], "is not two or three positive integers"),
        (["pretrain", "prepare", ".", "out", "--spacing", "1,nan,1"], "is not a list of positive numbers"),
        (["pretrain", "prepare", ".", "out", "--spacing", "0,1,1"], "is not a list of positive numbers"),
        (["models", "--patch-size", "50,64", "--name", "tiny"], "nearest valid sizes: 32 or 64"),
        # its last level has one voxel
        (
            ["models", "--patch-size", "32,32", "--name", "resnet50"],
            "The planner adapts networks to any patch",
        ),
        (["models", "--name", "densenet"], "no network's name contains 'densenet'"),
        (["models", "--patch-size", "64,64,64", "--name", "resnet"], "resnet18_unet, resnet50_unet have no 3D form"),
        (["report", "/nowhere"], "plans.json is missing"),
        (["demo", "--data", "/nowhere"], "no dataset.json"),
        (["demo", "--planner", "nnUNetPlanner"], "unknown planner"),
        (["demo", "--trainer", "foo"], "unknown trainer 'foo'; there are nnUNetTrainerMiT, nnUNetTrainerQTUNet"),
        (["demo", "--trainer", "nnUNetTrainerQTUnet"], "did you mean nnUNetTrainerQTUNet"),
        (["demo", "--trainer", "nnUNetPlannerQTUNetT"], "unknown trainer"),
        (["convert", "qt_unet", "/nowhere.pth", "-o", "/tmp/x.pth"], "no such checkpoint"),
        (["push", "/nowhere.pth", "owner/name"], "no such checkpoint"),
        (["pull", "hf://owner", "-o", "out"], "'hf://owner' is no address on the hub"),
        (["export-safetensors", "encoder.safetensors"], "encoder.safetensors is a safetensors file already"),
        (["pull", "hf://owner/name", "-o"], "requires an argument; see `nnunet-transformers pull --help`"),
        (["package", "verify", "--sha256"], "see `nnunet-transformers package verify --help`"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, captured = run_main(monkeypatch, capsys, *arguments)
    assert code == 1
    assert message in captured.err
    assert "Traceback" not in captured.err


class TestConvert:
    def released(self, tmp_path):
        shapes = released_keys("qt_unet")["qt_unet_tiny_4ch_3cls_128"]
        path = tmp_path / "released.pth"
        torch.save({"state_dict": {key: torch.zeros(shape) for key, shape in shapes}, "epoch": 1}, path)
        return path

    def test_whole_release(self, tmp_path):
        output = tmp_path / "converted.pth"
        result = invoke("convert", "qt_unet", self.released(tmp_path), "-o", output)
        assert "qt_unet_tiny in 3D, 4 input channels, 3 classes" in result.output
        content = torch.load(output, weights_only=True)
        assert content["network"]["name"] == "qt_unet_tiny"
        assert "stem.proj.weight" in content["network_weights"]

    def test_release_whose_weights_depend_on_the_patch_size(self, tmp_path):
        released, output = tmp_path / "released.pth", tmp_path / "converted.pth"
        torch.save({k: torch.zeros(s) for k, s in released_keys("mit")["mit_seg7_48x192x192"]}, released)
        result = invoke("convert", "mit", released, "-o", output)
        assert "mit_7 in 3D, 1 input channels, 14 classes, patch size 48x192x192 (a published size" in result.output
        content = torch.load(output, weights_only=True)
        assert content["network"]["patch_size"] == (48, 192, 192)
        assert content["network_weights"]["encoder.stages.0.position.weight"].shape == (1, 24, 48, 48, 48)
        output.unlink()
        result = invoke("convert", "mit", released, "-o", output, "--patch-size", "96,96,192")
        assert "patch size 96x96x192;" in result.output

    def test_truncated_and_existing(self, monkeypatch, capsys, tmp_path):
        released = self.released(tmp_path)
        existing = tmp_path / "there.pth"
        existing.write_text("kept")
        code, captured = run_main(monkeypatch, capsys, "convert", "qt_unet", released, "-o", existing)
        assert (code, existing.read_text()) == (1, "kept")
        assert "exists" in captured.err
        released.write_bytes(released.read_bytes()[:1000])
        output = tmp_path / "new.pth"
        code, captured = run_main(monkeypatch, capsys, "convert", "qt_unet", released, "-o", output)
        assert code == 1
        assert "truncated" in captured.err
        assert not output.exists()


class TestDoctor:
    def test_well(self, nnunet_folders):
        result = invoke("doctor")
        assert result.exit_code == 0, result.output
        assert f"nnU-Net finds our {len(PLANNERS)} planners" in result.output
        assert "no problems found" in result.output

    def test_forks_and_folders_of_trainers(self, nnunet_folders, monkeypatch, tmp_path):
        monkeypatch.setattr(doctor, "packages_distributions", lambda: {"nnunetv2": ["nnunetv2", "nnunetv2-fork"]})
        package = tmp_path / "package"
        package.mkdir()
        (package / "__init__.py").touch()
        site = tmp_path / "site"
        (site / "nnunet_transformers").mkdir(parents=True)
        folders = [tmp_path / "missing", package, site, Path(cli.__file__).parent.parent / "ext_trainers"]
        monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, folders)))
        findings = [*doctor.check_shadowing(), *doctor.check_trainer_folders()]
        assert len(findings) == 4
        for finding, text in zip(
            findings, ("nnunetv2-fork", "is not a folder", "cannot be pickled", "whole packages"), strict=True
        ):
            assert text in finding.text
            assert finding.remedy

    def test_finds_what_is_wrong(self, nnunet_folders, monkeypatch):
        monkeypatch.delenv("nnUNet_raw")
        monkeypatch.setenv("nnUNet_results", str(nnunet_folders / "nowhere"))
        monkeypatch.setenv("NNUNET_TRANSFORMERS_HOOK", "off")
        result = invoke("doctor")
        assert result.exit_code == 1
        assert "nnUNet_raw is not set" in result.output
        assert f"mkdir {nnunet_folders / 'nowhere'}" in result.output
        assert "switched off by NNUNET_TRANSFORMERS_HOOK=off" in result.output

    def test_file_in_place_of_a_folder(self, nnunet_folders, monkeypatch):
        (nnunet_folders / "file").touch()
        (nnunet_folders / "link").symlink_to("nowhere")
        for name in ("file", "link"):
            monkeypatch.setenv("nnUNet_results", str(nnunet_folders / name))
            (finding,) = (f for f in doctor.check_folders() if f.state == doctor.PROBLEM)
            assert "mkdir" not in finding.remedy

    def test_folder_at_the_root(self, nnunet_folders, monkeypatch):
        """As of "$BASE/results" without BASE; nobody should make it there."""
        monkeypatch.setenv("nnUNet_results", "/results-of-nobody")
        assert [f.remedy for f in doctor.check_folders() if f.state == doctor.PROBLEM] == [
            "export nnUNet_results=/path/to/folder, one that exists"
        ]

    def test_space_and_loaders(self, nnunet_folders, monkeypatch, tmp_path):
        assert list(doctor.check_loaders()) == []
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e9, total=64e6))
        texts = [finding.text for finding in (*doctor.check_space(), *doctor.check_loaders())]
        assert texts[:2] == [f"1.0 GB are free in {name}" for name in ("nnUNet_preprocessed", "nnUNet_results")]
        assert "has 64 MB" in texts[2]
        assert "nnUNet_n_proc_DA is 0" in texts[3]

    def test_missing_hook(self, monkeypatch):
        monkeypatch.setattr(doctor.discovery, "is_installed", lambda: False)
        (finding,) = doctor.check_discovery()
        assert finding.state == doctor.PROBLEM


def test_version():
    assert invoke("--version").output == f"{__version__}\n"


def test_the_demo_finds_commands_on_the_path(tmp_path, monkeypatch, capfd):
    """As after `pip install --user`, which puts them elsewhere than Python."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match="there is no nnUNetv2_train beside Python or on PATH"):
        pipeline._run("nnUNetv2_train 4", {"PATH": str(tmp_path)})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nnUNetv2_train").write_text("#!/bin/sh\necho trains $1\n")
    (tmp_path / "bin" / "nnUNetv2_train").chmod(0o755)
    pipeline._run("nnUNetv2_train 4", {"PATH": str(tmp_path / "bin")})
    assert "trains 4\n" in capfd.readouterr().out


def test_demo_dataset_is_real_and_reproducible(tmp_path):
    pytest.importorskip("nilearn")
    import SimpleITK as sitk

    first, second = (make_dataset(tmp_path / name) for name in ("a", "b"))
    description = json.loads((first / "dataset.json").read_text())
    assert description["numTraining"] == TRAIN_CASES == len(list((first / "labelsTr").iterdir()))
    assert len(list((first / "imagesTs").iterdir())) == TEST_CASES
    pictures = []
    for name in ("imagesTr/brain_00_0000.nii.gz", "labelsTr/brain_00.nii.gz"):
        one, two = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (first, second))
        np.testing.assert_array_equal(one, two)
        pictures.append(one)
    image, label = pictures
    assert image.shape == label.shape
    assert set(np.unique(label)) == set(LABELS.values())
    # white matter is brighter than grey matter in T1
    assert image[label == 2].mean() > image[label == 1].mean() > image[label == 0].mean()


class TestErrors:
    def run(self, monkeypatch, capsys, error):
        def command(**_):
            raise error

        monkeypatch.setattr(cli, "app", command)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    def test_mistakes_are_one_line(self, monkeypatch, capsys):
        for error in (ValueError("wrong"), FileNotFoundError("wrong"), RuntimeError("wrong")):
            assert self.run(monkeypatch, capsys, error) == (1, "error: wrong\n")

    def test_names_that_the_terminal_cannot_show(self, monkeypatch):
        """They are escaped; the command goes on."""
        shown = BytesIO()
        monkeypatch.setattr(sys, "stdout", TextIOWrapper(shown, encoding="ascii"))
        monkeypatch.setattr(cli, "app", lambda **_: print("wei\xdf \udcff"))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        sys.stdout.flush()
        assert (stop.value.code, shown.getvalue()) == (0, b"wei\\xdf \\udcff\n")

    def test_bugs_ask_for_a_report(self, monkeypatch, capsys):
        code, text = self.run(monkeypatch, capsys, TypeError("not your mistake"))
        assert code == 70
        assert text.startswith("Traceback")
        assert "TypeError: not your mistake\nerror: this is a bug of nnunet-transformers. Please report" in text

    def test_ctrl_c(self, monkeypatch, capsys, tmp_path):
        """By whatever typer does with it, with what the command says on how to go on."""
        for said, message in (((), "interrupted"), (("go on with --c",), "interrupted; go on with --c")):

            def stopped(*_, said=said):
                raise KeyboardInterrupt(*said)

            monkeypatch.setattr("nnunet_transformers.evaluation.evaluate_predictions", stopped)
            code, captured = run_main(monkeypatch, capsys, "evaluate-iou", tmp_path, tmp_path)
            assert (code, captured.err) == (130, f"error: {message}\n")
