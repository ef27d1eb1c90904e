"""``nnunet-transformers preset`` as a user types it."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.plans.presets import load_presets
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetT
from tests.cli.test_cli import run_main
from tests.plans.test_planner import plan


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """nnU-Net's folders with a dataset that is planned; a test may add plans."""
    folder = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for kind in ("raw", "preprocessed", "results"):
            monkeypatch.setenv(f"nnUNet_{kind}", str(folder / kind))
        plan(folder, nnUNetPlannerQTUNetT, (3.0, 0.8, 0.8), (60, 100, 100), labels=3)
        yield


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["preset", *arguments])


def test_list():
    result = invoke("--list")
    assert result.exit_code == 0
    rows = re.findall(r"│ ([a-z0-9-]+) +│", result.output)
    assert set(load_presets()) <= set(rows)
    row = next(line for line in result.output.splitlines() if "synapse-320" in line)
    for text in ("unet2022_tiny", "2d", "320x320", "as planned", "10, 10, 20, 10", "0.2", "Dice 86.46"):
        assert text in row


def test_list_part():
    output = invoke("hippocampus", "--list").output
    assert "msd04-hippocampus-base" in output
    assert "synapse" not in output


def test_apply(planned):
    result = invoke("btcv-tiny", "-d", "903")
    assert result.exit_code == 0, result.output
    for text in (
        "nnUNetQTUNetTPlans_btcv-tiny.json",
        "96x96x96 (planned: ",
        "2x1.5x1.5 mm (planned: 3x0.8x0.8)",
        "channels and classes of the paper's data are 1 and 14, of this dataset 1 and 3",
        "Dice 53.5; scratch: Dice 38.51 (QT-UNet thesis, section 3.2.1",
        "GB in training, estimated",
        "nnUNetv2_preprocess -d 903 -c 3d_fullres -plans_name nnUNetQTUNetTPlans_btcv-tiny",
        "-step_size 0.5",
    ):
        assert text in result.output


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "name a preset and a dataset"),
        (["btcv-tiny"], "name a preset and a dataset"),
        (["btcv-tyni", "-d", "903"], "did you mean btcv-tiny"),
        (["nnformer", "--list"], "no preset's name contains 'nnformer'"),
        (["btcv-base", "-d", "903"], "nnUNetv2_plan_experiment -d 903 -pl nnUNetPlannerQTUNetB"),
        (["btcv-tiny", "-d", "1000"], "no dataset '1000'"),
        (["btcv-tiny", "-d", "903", "-o", "a__b"], "no double underscore"),
    ],
)
def test_mistakes_are_one_line(planned, monkeypatch, capsys, arguments, message):
    code, captured = run_main(monkeypatch, capsys, "preset", *arguments)
    assert code == 1
    assert message in captured.err
    assert captured.err.count("\n") == 1
