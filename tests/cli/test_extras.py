"""Without the extra [pretraining] everything else works, and a command that needs it says so in a line."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nnunet_transformers.sharing import requirements

if sys.version_info < (3, 11):
    import tomli as tomllib
else:
    import tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRA = {"lightning", "lightly", "jsonargparse"}
# what these bring and nnU-Net does not
BROUGHT = {"pytorch_lightning", "lightning_utilities", "lightning_fabric", "torchmetrics", "hydra", "omegaconf"}
# parts that belong to the extra
NEEDING = (
    "pretraining",
    "classification",
    "detection",
    "runs",
    "evaluation.features",
    "testing.method",
    "testing.recipe",
)
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRA | BROUGHT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
# runs commands, each a list of arguments, and imports all modules that are not of the extra; in one process, as torch
# takes seconds to import
PROGRAM = f"""
import contextlib, importlib, io, json, pkgutil
import nnunet_transformers
from nnunet_transformers.cli import main

def run(arguments):
    sys.argv = ["nnunet-transformers", *arguments]
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main()
        except SystemExit as exit:
            status = exit.code or 0
    return {{"returncode": status, "stdout": output.getvalue(), "stderr": errors.getvalue()}}

def walk(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.removeprefix("nnunet_transformers.") not in {NEEDING}:
            imported = importlib.import_module(module.name)
            yield module.name
            if module.ispkg:
                yield from walk(imported)

results = [run(arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([results, list(walk(nnunet_transformers))]))
"""
NEED_IT = [
    ("pretrain", "fit", "--config", "qt_ssl_ct"),
    ("classify", "fit", "prepared", "labels.csv", "--config", "default"),
]
GO_WITHOUT = [("--help",), ("pretrain", "prepare", "raw", "prepared"), ("pretrain", "recipes")]


@pytest.fixture(scope="module")
def without_extra(tmp_path_factory):
    """What commands return and print in a Python that lacks the extra, and the modules that it imports."""
    commands = NEED_IT + GO_WITHOUT
    process = subprocess.run(
        [sys.executable, "-c", BLOCKER + PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path_factory.mktemp("working"),
    )
    assert process.returncode == 0, process.stderr
    results, modules = json.loads(process.stdout)
    return {c: SimpleNamespace(**result) for c, result in zip(commands, results, strict=True)}, modules


@pytest.fixture
def results(without_extra):
    return without_extra[0]


def test_all_other_modules_are_imported(without_extra):
    for name in ("trainers.trainer", "weights.attach", "sharing.predict", "inference.command", "cli.pretrain"):
        assert f"nnunet_transformers.{name}" in without_extra[1]


def test_help(results):
    result = results["--help",]
    assert result.returncode == 0, result.stderr
    assert "pretrain" in result.stdout


@pytest.mark.parametrize("arguments", NEED_IT, ids=lambda arguments: " ".join(arguments[:2]))
def test_commands_that_need_it_say_so(arguments, results):
    result = results[arguments]
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.endswith("pip install 'nnunet-transformers[pretraining]'")
    assert "Traceback" not in result.stderr


def test_preparing_images_goes_without(results):
    result = results["pretrain", "prepare", "raw", "prepared"]
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert "raw" in line and "pip install" not in line


def names(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_a_package_pins_the_base_alone(monkeypatch):
    """A container with a trained model carries nnU-Net plus little."""
    plugin = SimpleNamespace(version="1.0", requires=PROJECT["dependencies"])
    found = {requirements.PLUGIN: plugin}
    monkeypatch.setattr(requirements, "distribution", lambda name: found.get(name) or distribution(name))
    pinned = names(requirements.pinned_requirements())
    assert "nnunetv2" in pinned
    assert not pinned & {canonicalize_name(name) for name in EXTRA | BROUGHT}
    assert names(requirements.pinned_requirements(["pytest"])) - pinned >= {"pytest", "pluggy"}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, here or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"nnunet_transformers"}


def test_what_is_imported_is_declared():
    base, extras = names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert {name.replace("-", "_") for name in names(extras["pretraining"])} == EXTRA
    # asked for by the doctor, since timm brings it and nnU-Net finds no trainer without it
    # typing_extensions is for type checkers only, and torch brings it
    without_their_own = ("benchmark", "demo", "detection", "dicom", "monai", "onnx", "reports")
    extra = [line for name in without_their_own for line in extras[name]]
    optional = {"torchvision", "typing-extensions"} | names(extra)
    providers, undeclared = packages_distributions(), set()
    files = set((ROOT / "nnunet_transformers").rglob("*.py"))
    # of a package of its own, which declares what it imports
    files -= {*(ROOT / "nnunet_transformers/scaffold/template").rglob("*.py")}
    for file in files:
        module = ".".join(file.relative_to(ROOT / "nnunet_transformers").with_suffix("").parts)
        declared = base | optional | (names(extras["pretraining"]) if module.startswith(NEEDING) else set())
        if "template" in file.parts:  # of a package with dependencies of its own
            continue
        for name in imported(file):
            if not {canonicalize_name(provider) for provider in providers.get(name, [name])} & declared:
                undeclared.add((module, name))
    assert not undeclared
