"""Mistakes in nnU-Net's own commands; whole commands are in tests/mistakes."""

from __future__ import annotations

import sys

import pytest
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers import _one_line
from nnunet_transformers._text import code
from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.cli._options import parse_spacing
from nnunet_transformers.plans import plan_files


@pytest.fixture(autouse=True)
def train(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/nnUNetv2_train", "4"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(_one_line, "_suggested", set())


def told(function, *arguments):
    try:
        function(*arguments)
    except BaseException as error:
        return _one_line.told(error, error.__traceback__)
    raise AssertionError("nothing was raised")


def raising(error):
    raise error


def test_what_this_package_raises_on_purpose_is_a_line():
    assert told(create_network, "qt_unet_tinny", 1, 2, (32, 32)).startswith("unknown network 'qt_unet_tinny'; did you")
    assert told(parse_spacing, "1x1") == "--spacing '1x1' is not a list of numbers such as 1,1,1"


def test_bugs_keep_their_traceback():
    # raised here, by Python within this package, and on purpose but of another kind
    assert told(raising, ValueError("not ours")) is None
    assert told(code, Unprintable()) is None


class Unprintable:
    def __str__(self):
        raise KeyError("a bug")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            AssertionError(
                "Key a is missing in the pretrained model weights. The pretrained weights do not seem to be "
                "compatible with your network."
            ),
            "the file of -pretrained_weights is not of the whole network",
        ),
        (KeyError("network_weights"), "the file of -pretrained_weights is not of the whole network"),
        (RuntimeError("Requested configuration 3d not found in plans. Available configurations: ['2d']"), "Requested"),
        (KeyboardInterrupt(), "interrupted; --c goes on from the last checkpoint"),
    ],
)
def test_errors_of_nnunet_that_have_a_remedy(error, line):
    assert told(raising, error).startswith(line)


def test_a_suggestion_is_enough():
    error = RuntimeError("Could not find requested nnunet trainer nnUNetTrainerMine in nnunetv2")
    assert told(raising, error) is None
    _one_line.suggested("nnUNetTrainerMine")
    assert told(raising, error) == ""
    assert sys.excepthook is _one_line.show


def test_only_in_nnunets_commands(monkeypatch, capsys):
    _one_line.install()
    assert sys.excepthook is _one_line.show
    _one_line.show(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.startswith("error: interrupted")
    monkeypatch.setattr(sys, "excepthook", print)  # a debugger's
    _one_line.install()
    assert sys.excepthook is print
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys, "argv", ["my_script.py"])
    _one_line.install()
    assert sys.excepthook is sys.__excepthook__


def test_damaged_plan(tmp_path, monkeypatch):
    """nnU-Net names neither the file nor what to do."""
    (tmp_path / "nnUNetQTUNetTPlans.json").write_text('{"plans_name": "x",}')

    def get_trainer_from_args():
        plans_file = str(tmp_path / "nnUNetQTUNetTPlans.json")
        return load_json(plans_file)

    monkeypatch.setattr(plan_files, "convert_dataset_name_to_id", lambda name: 4)
    line = told(get_trainer_from_args)
    assert line.startswith(f"{tmp_path}/nnUNetQTUNetTPlans.json is truncated or not a plan of nnU-Net's: ")
    assert line.endswith(
        "Correct or remove the file. Run `nnUNetv2_plan_and_preprocess --no_pp -d 4 -pl nnUNetPlannerQTUNetT`"
    )


@pytest.mark.parametrize("name", ["nnUNetQTUNetTPlans", "nnUNetQTUNetTPlans_ssl", "Mine"])
def test_missing_plan(name, tmp_path):
    """Of any name: those that ``attach`` and ``preset`` write end otherwise than planners' own."""
    (tmp_path / "nnUNetPlans.json").write_text('{"configurations": {}}')

    def get_trainer_from_args():
        plans_file = str(tmp_path / f"{name}.json")
        return load_json(plans_file)

    line = told(get_trainer_from_args)
    assert line.startswith(f"the plan {tmp_path}/{name}.json is missing. ")
    assert "nnUNetPlannerQTUNetT" in line if name == "nnUNetQTUNetTPlans" else "nnUNetPlans" in line


@pytest.mark.parametrize("arguments", [{"norm_placment": "pre"}, {"num_stages": "3"}])
def test_arguments_of_a_plan_that_make_no_network(arguments):
    """As where they were edited; nnU-Net builds the network."""
    path = get_network("qt_unet_tiny").class_path
    line = told(get_network_from_plans, path, {"patch_size": [32, 32], **arguments}, (), 1, 2)
    assert line.startswith("the plan's arch_kwargs describe no network that can be built: ")
    assert line.endswith("; correct them, or plan again")
