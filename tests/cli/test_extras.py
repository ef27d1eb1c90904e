"""Without the extra [pretraining] everything else works, and a command that needs it says so in a line."""

from __future__ import annotations

import ast
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
NEEDING = ("pretraining", "classification", "detection", "runs", "evaluation.features", "testing.method")
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRA | BROUGHT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
IMPORT_ALL = f"""
import importlib, pkgutil
import nnunet_transformers

def walk(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.removeprefix("nnunet_transformers.") not in {NEEDING}:
            imported = importlib.import_module(module.name)
            print(module.name)
            if module.ispkg:
                walk(imported)

walk(nnunet_transformers)
"""
MAIN = "from nnunet_transformers.cli import main; main()"


def run(code: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run code in a Python that lacks the extra."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BLOCKER + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def test_all_other_modules_are_imported():
    result = run(IMPORT_ALL)
    assert result.returncode == 0, result.stderr
    modules = result.stdout.split()
    for name in ("trainers.trainer", "weights.attach", "sharing.predict", "inference.command", "cli.pretrain"):
        assert f"nnunet_transformers.{name}" in modules


def test_help():
    result = run(MAIN, "--help")
    assert result.returncode == 0, result.stderr
    assert "pretrain" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("pretrain", "fit", "--config", "qt_ssl_ct"),
        ("pretrain", "recipes"),
        ("classify", "fit", "prepared", "labels.csv", "--config", "default"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_commands_that_need_it_say_so(arguments, tmp_path):
    result = run(MAIN, *arguments, cwd=tmp_path)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.endswith("pip install 'nnunet-transformers[pretraining]'")
    assert "Traceback" not in result.stderr


def test_preparing_images_goes_without(tmp_path):
    result = run(MAIN, "pretrain", "prepare", "raw", "prepared", cwd=tmp_path)
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
    extra = [line for name in ("benchmark", "demo", "detection", "onnx", "reports") for line in extras[name]]
    optional = {"torchvision", "typing-extensions"} | names(extra)
    providers, undeclared = packages_distributions(), set()
    files = set((ROOT / "nnunet_transformers").rglob("*.py"))
    # of a package of its own, which declares what it imports
    files -= {*(ROOT / "nnunet_transformers/scaffold/template").rglob("*.py")}
    for file in files:
        module = ".".join(file.relative_to(ROOT / "nnunet_transformers").with_suffix("").parts)
        declared = base | optional | (names(extras["pretraining"]) if module.startswith(NEEDING) else set())
        for name in imported(file):
            if not {canonicalize_name(provider) for provider in providers.get(name, [name])} & declared:
                undeclared.add((module, name))
    assert not undeclared
