"""`nnunet-transformers new network` writes a package that installs and is found."""

from __future__ import annotations

import re
import sys

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_transformers import _plugins
from nnunet_transformers.architectures import create_network
from nnunet_transformers.cli import app
from nnunet_transformers.cli._findings import PROBLEM, WARNING
from nnunet_transformers.cli._plugin_checks import check_plugins
from nnunet_transformers.discovery import find
from nnunet_transformers.plans.tiling import TokenPlan
from nnunet_transformers.scaffold import check_name, write_package
from nnunet_transformers.testing import check_network
from tests.cli.test_cli import run_main
from tests.packages import install, site_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The package of a network ``small_net``, from the command line."""
    folder = tmp_path_factory.mktemp("new") / "made" / "small_net"
    app(["new", "network", "small_net", "-o", str(folder)], standalone_mode=False)
    return folder


@pytest.fixture(scope="module")
def installed(written, tmp_path_factory):
    with site_folder(tmp_path_factory.mktemp("installed") / "site") as site:
        install(written, site)
        yield site


def test_names(written):
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "pyproject.toml",
        "small_net/__init__.py",
        "small_net/network.py",
        "small_net/planner.py",
        "small_net/trainer.py",
        "tests/test_small_net.py",
    }
    text = "".join((written / file).read_text() for file in files)
    assert not re.search("my.?network", text, flags=re.IGNORECASE)
    assert 'name = "small-net"' in text
    assert "class SmallNet(SegmentationNetwork)" in text


def test_found(installed):
    assert "small_net" not in sys.modules
    assert type(create_network("small_net", 1, 2, (32, 32))).__module__ == "small_net.network"
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerSmallNet_5epochs")
    assert (trainer.__module__, trainer.default_epochs) == ("small_net.trainer", 5)
    assert {d.package for d in _plugins.declarations()} == {"small-net"}
    assert [f for f in check_plugins() if f.state in (PROBLEM, WARNING)] == []


def test_contract_in_2d(installed):
    check_network("small_net", 2)


def test_planner_of_3d(installed):
    """The planner's strides are the network's, for thick slices too."""
    planner = find("nnUNetPlannerSmallNet")
    tokens = TokenPlan((8, 32, 32), (1, 2, 2), ((1, 2, 2), (2, 2, 2)), None)
    arguments = planner.network_arguments(planner.__new__(planner), tokens)
    assert arguments["num_stages"] == 3
    assert arguments["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize(
    "name,message",
    [
        ("SmallNet", "cannot be a network's name"),
        ("small-net", "cannot be a network's name"),
        ("small__net", "cannot be a network's name"),
        ("2net", "cannot be a network's name"),
        ("lambda", "cannot be a network's name"),
        ("none", "cannot be a network's name"),  # its class would be None
        ("../net", "cannot be a network's name"),
        ("torch", "there is a Python module torch"),
        ("pillow", "there is an installed package pillow, which pip would replace"),
        ("setr_pup", "would have the planner nnUNetPlannerSETRPUP"),
        ("adam", "would have the trainer nnUNetTrainerAdam"),
        ("qt_unet_tiny", "there is a network qt_unet_tiny"),
        ("block", "block would have the class Block, which its files use"),
        ("transformer_trainer", "would have the class TransformerTrainer"),
    ],
)
def test_names_that_are_taken(name, message):
    with pytest.raises(ValueError, match=message):
        check_name(name)


@pytest.mark.parametrize("name", ["feature", "patch", "yu", "the"])
def test_words_of_docstrings_are_free(name):
    check_name(name)


def test_existing_folder(monkeypatch, capsys, tmp_path):
    (tmp_path / "kept").touch()
    code, captured = run_main(monkeypatch, capsys, "new", "network", "small_net", "-o", tmp_path)
    assert (code, captured.err) == (1, f"error: {tmp_path} exists; remove it or name another folder with -o\n")
    with pytest.raises(FileExistsError):
        write_package("small_net", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
