"""Encoders and packages go to the hub and come back as they were, through huggingface_hub's own client."""

from __future__ import annotations

import json
import re
import shutil
import time

import pytest
import torch
import yaml
from huggingface_hub import constants

from nnunet_transformers.sharing import pull, push, verify
from nnunet_transformers.sharing.front_matter import card_data, licence_identifier
from nnunet_transformers.weights import EncoderCheckpoint, load
from tests.test_stored_files import SECOND, STORED, unpacked

from .conftest import invoke

ENCODER = STORED / "encoder_qt_unet.pth"
(MODEL,) = (STORED / "model").iterdir()


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """An encoder of the same name with another hash."""
    return unpacked(SECOND, tmp_path_factory.mktemp("another") / "files") / ENCODER.name


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of the first version, without front matter in its card."""
    return unpacked(STORED / "package", tmp_path_factory.mktemp("stored") / "package")


def front_matter(card: bytes) -> dict:
    return yaml.safe_load(re.match(rb"---\n(.*?)\n---\n\n#", card, flags=re.DOTALL)[1])


class TestEncoder:
    def test_there_and_back(self, hub, tmp_path):
        result = invoke(
            "push", ENCODER, "o/n", "--licence", "CC BY 4.0", "--dataset", "o/scans", "--dataset", "Our own"
        )
        repository = hub.repositories["o/n"]
        commit = repository.branches["main"]
        copy = ENCODER.with_suffix(".safetensors").name
        assert set(repository.files) == {".gitattributes", "README.md", ENCODER.name, copy}
        (tmp_path / copy).write_bytes(repository.files[copy])
        there, here = load(tmp_path / copy), load(ENCODER)
        assert (there.name, there.method) == (here.name, here.method)
        assert all(torch.equal(there.weights[name], value) for name, value in here.weights.items())
        assert repository.files[ENCODER.name] == ENCODER.read_bytes()
        assert f"pushed: hf://o/n/{ENCODER.name}@{commit}, 0.1 MB" in result.output
        sha256 = EncoderCheckpoint.load(ENCODER).sha256
        assert sha256 in result.output

        result = invoke("pull", "hf://o/n", "-o", tmp_path / "out", "--sha256", sha256.upper())
        assert f"pulled hf://o/n/{ENCODER.name}@{commit}: {ENCODER.name}\n" in result.output
        assert f"SHA-256: {sha256} (as stated)" in result.output
        assert [path.name for path in (tmp_path / "out").iterdir()] == [ENCODER.name]
        assert (tmp_path / "out" / ENCODER.name).read_bytes() == ENCODER.read_bytes()
        assert not (tmp_path / "out" / ENCODER.name).is_symlink()

    def test_card(self, hub):
        push(ENCODER, "hf://o/n", licence="CC BY 4.0", datasets=["o/scans", "Our own <b>"])
        card = hub.repositories["o/n"].files["README.md"]
        assert front_matter(card) == {
            "license": "cc-by-4.0",
            "library_name": "nnunet-transformers",
            "pipeline_tag": "image-segmentation",
            "tags": ["nnunet", "medical", "qt_unet_tiny", load(ENCODER).method],
            "datasets": ["o/scans"],
        }
        text = card.decode()
        for line in (
            f"nnunet-transformers attach hf://o/n/{ENCODER.name} -d DATASET",
            "Licence of the weights: CC BY 4.0",
            r"| data | o/scans, Our own \<b\> |",
            f"`{load(ENCODER).sha256}`",
        ):
            assert line in text

    def test_branches(self, hub, tmp_path, another):
        first = push(ENCODER, "o/n")
        second = push(another, "o/n", revision="v2")
        assert first.address.revision != second.address.revision
        assert pull("hf://o/n@v2", tmp_path / "a").sha256 == second.sha256 != first.sha256
        assert pull(str(first.address), tmp_path / "b").sha256 == first.sha256
        # nothing has changed: no commit
        assert push(ENCODER, "o/n").address == first.address

    def test_an_earlier_checkpoint_is_not_taken(self, hub, tmp_path, another):
        """A file of .pth would be taken before the new one of .safetensors."""
        push(ENCODER, "o/n")
        newer = tmp_path / ENCODER.with_suffix(".safetensors").name
        load(another).save(newer)
        pushed = push(newer, "o/n")
        assert pull("hf://o/n", tmp_path / "out").sha256 == pushed.sha256 == load(newer).sha256
        assert set(hub.repositories["o/n"].files) == {".gitattributes", "README.md", newer.name}

    def test_edited_card(self, hub, another):
        push(ENCODER, "o/n")
        hub.add("o/n", {**hub.repositories["o/n"].files, "README.md": b"edited"})
        push(another, "o/n", keep_card=True)
        assert hub.repositories["o/n"].files["README.md"] == b"edited"
        push(ENCODER, "o/n")
        assert hub.repositories["o/n"].files["README.md"] != b"edited"

    def test_private(self, hub, another):
        push(ENCODER, "o/private", private=True)
        assert hub.repositories["o/private"].private
        push(ENCODER, "o/public")
        assert not hub.repositories["o/public"].private
        before = dict(hub.repositories["o/public"].files)
        with pytest.raises(ValueError, match="o/public is public already; nothing was pushed"):
            push(another, "o/public", private=True)
        assert hub.repositories["o/public"].files == before

    def test_the_hub_refuses_a_card(self, hub, monkeypatch):
        """Its reasons, in one line, and no commit."""
        monkeypatch.setattr("nnunet_transformers.sharing.hub_card.card_data", lambda *_: card_data("", [], ["x"]))
        monkeypatch.setattr("nnunet_transformers.sharing.front_matter.UNKNOWN", "not-a-licence")
        with pytest.raises(ValueError, match=r'^Invalid metadata in README\.md\. - "license" must be one of \[...\]$'):
            push(ENCODER, "o/n")
        assert set(hub.repositories["o/n"].files) == {".gitattributes"}


class TestPackage:
    def test_there_and_back(self, hub, tmp_path, package):
        manifest = verify(package)
        result = invoke("push", package, "o/n")
        files = hub.repositories["o/n"].files
        assert {name for name in files if "/" not in name} == {".gitattributes", "README.md"}
        assert f"pushed: hf://o/n/package@{hub.repositories['o/n'].branches['main']}" in result.output
        assert manifest.sha256 in result.output

        result = invoke("pull", "hf://o/n", "-o", tmp_path / "out", "--sha256", manifest.sha256)
        assert f": a package of {len(manifest.entries) + 1} files\n" in result.output
        assert verify(tmp_path / "out", manifest.sha256) == manifest
        for name in manifest.entries:
            assert (tmp_path / "out" / name).read_bytes() == (package / name).read_bytes()

    def test_card_of_an_earlier_version(self, hub, package):
        push(package, "o/n", datasets=["o/balls"])
        card = hub.repositories["o/n"].files["README.md"]
        assert front_matter(card) == {
            "license": "cc-by-4.0",
            "library_name": "nnunet-transformers",
            "pipeline_tag": "image-segmentation",
            "tags": ["nnunet", "medical"],
            "datasets": ["o/balls"],
        }
        assert (package / "README.md").read_text().strip() in card.decode()
        assert "nnunet-transformers pull hf://o/n/package -o model" in card.decode()

    def test_card_with_scores(self, hub, tmp_path):
        """The Dice of the validation goes from nnU-Net's summary into the package's card, and on to the hub's."""
        model = tmp_path / "results" / MODEL.name
        unpacked(MODEL, model)
        for fold, dice in (("0", 0.75), ("1", 0.25), ("2", float("nan"))):
            if fold != "0":
                shutil.copytree(model / "fold_0", model / f"fold_{fold}")
            summary = {"foreground_mean": {"Dice": dice}, "mean": {"1": {"Dice": dice}}}
            (model / f"fold_{fold}" / "validation").mkdir(exist_ok=True)
            (model / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps(summary))
        invoke("package", model, "-o", tmp_path / "package", "--licence", "Ask *us*")
        (result,) = front_matter((tmp_path / "package" / "README.md").read_bytes())["model-index"][0]["results"]
        assert result["task"] == {"type": "image-segmentation"}
        name = "Dataset900_Balls"
        assert result["dataset"] == {"type": name, "name": name, "config": "3d_fullres", "split": "validation"}
        expected = {"type": "dice", "value": 0.5, "name": f"Dice of {MODEL.name}, fold 0, 1"}
        assert {key: value for key, value in result["metrics"][0].items() if key in expected} == expected

        push(tmp_path / "package", "o/n")
        data = front_matter(hub.repositories["o/n"].files["README.md"])
        assert data["model-index"] == [{"name": name, "results": [result]}]
        assert (data["license"], data["license_name"], data["datasets"]) == ("other", "Ask -us-", [name])
        assert data["tags"] == ["nnunet", "medical", "QTUNet"]

    def test_scores_of_another_checkpoint(self, tmp_path):
        """nnU-Net's validation is that of checkpoint_final, and says nothing of other weights."""
        model = tmp_path / "results" / MODEL.name
        unpacked(MODEL, model)
        (model / "fold_0" / "checkpoint_final.pth").rename(model / "fold_0" / "checkpoint_best.pth")
        (model / "fold_0" / "validation").mkdir(exist_ok=True)
        summary = {"foreground_mean": {"Dice": 0.75}, "mean": {"1": {"Dice": 0.75}}}
        (model / "fold_0" / "validation" / "summary.json").write_text(json.dumps(summary))
        made = invoke("package", model, "-o", tmp_path / "package", "-chk", "checkpoint_best.pth")
        assert made.exit_code == 0, made.output
        card = (tmp_path / "package" / "README.md").read_text()
        assert "0.75" not in card and "model-index" not in card and "not validated" in card
        assert "The weights are those of `checkpoint_best.pth`; nnU-Net validates `checkpoint_final.pth`." in card

    def test_a_misspelt_command(self):
        result = invoke("package", "verfy", "folder")
        assert result.exit_code == 2 and "No such command 'verfy'" in result.output

    def test_fewer_files_than_before(self, hub, tmp_path, package):
        """A file of the earlier package would not belong to the new one."""
        push(package, "o/n")
        files = hub.repositories["o/n"].files
        hub.add("o/n", {**files, "package/wheels/x.whl": b"", "packages/y": b"", "notes.txt": b""})
        with pytest.raises(
            ValueError, match=r"wheels/x\.whl does not belong to the package in hf://o/n/package@\w{40};"
        ):
            pull("hf://o/n", tmp_path / "out")
        push(package, "o/n")
        assert {"packages/y", "notes.txt"} < set(hub.repositories["o/n"].files)
        pull("hf://o/n", tmp_path / "out")


class TestRefused:
    def test_what_is_not_ours(self, hub, tmp_path):
        (tmp_path / "folder").mkdir()
        fold = unpacked(MODEL, tmp_path / "model") / "fold_0"
        (tmp_path / "a b.pth").write_bytes(ENCODER.read_bytes())
        altered = tmp_path / "altered.pth"
        EncoderCheckpoint.load(ENCODER).save(altered)
        altered.write_bytes(altered.read_bytes().replace(b"qt_unet_tiny", b"qt_unet_base"))
        for source, error, message in (
            (tmp_path / "none.pth", FileNotFoundError, "no such checkpoint"),
            (tmp_path / "folder", FileNotFoundError, "is not a package"),
            (fold / "checkpoint_final.pth", ValueError, "is not a checkpoint of kind"),
            (STORED / "classifier.pth", ValueError, "its kind is classifier"),
            (STORED / "expected.json", ValueError, "truncated or not a checkpoint"),
            (altered, ValueError, "damaged|altered"),
            (tmp_path / "a b.pth", ValueError, "'a b.pth' cannot be a name on the hub"),
        ):
            with pytest.raises(error, match=message):
                push(source, "o/n")
        with pytest.raises(ValueError, match="must be owner/name; a branch is named by --revision"):
            push(ENCODER, "o/n@v2")
        assert not hub.requests

    @pytest.mark.parametrize("damage", ["altered", "truncated", "another"])
    def test_damaged_encoder(self, hub, tmp_path, damage):
        content = ENCODER.read_bytes()
        content = {
            "altered": content[:-2000] + b"x" * 8 + content[-1992:],
            "truncated": content[:-100],
            "another": b"",
        }[damage]
        hub.add("o/n", {"encoder.pth": content})
        with pytest.raises(ValueError) as error:
            pull("hf://o/n", tmp_path / "out")
        assert str(error.value).startswith("hf://o/n/encoder.pth@")
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]

    def test_another_hash(self, hub, tmp_path, package):
        for source in (ENCODER, package):
            pushed = push(source, f"o/{source.stem}")
            with pytest.raises(ValueError, match=f"has SHA-256 {pushed.sha256}, not {'0' * 64}; nothing was written"):
                pull(str(pushed.address), tmp_path / "out", "0" * 64)
        assert not (tmp_path / "out").exists()

    def test_damaged_package(self, hub, tmp_path, package):
        push(package, "o/n")
        files = dict(hub.repositories["o/n"].files)
        weights = next(name for name in files if name.endswith(".safetensors"))
        for name, content, message in (
            (weights, files[weights][:-1] + b"x", "was changed: its SHA-256 differs"),
            ("package/predict.py", b"import os", "was changed"),
            ("package/models.json", None, "is not a checkpoint of kind"),
            (weights, None, "is missing in hf://o/n/package@"),
        ):
            changed = {**files, name: content} if content is not None else {n: c for n, c in files.items() if n != name}
            hub.add("o/n", changed)
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                pull("hf://o/n/package", tmp_path / "out")
            assert not (tmp_path / "out").exists()

    def test_existing_folder(self, hub, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(FileExistsError, match="out exists; remove it or choose another name"):
            pull("hf://o/n", tmp_path / "out")

    @pytest.mark.parametrize("token", ["hf_of_a_stranger", ""])
    def test_token(self, hub, monkeypatch, token):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(PermissionError) as error:
            push(ENCODER, "o/n")
        assert str(error.value).startswith(
            f"no access to o/n on {hub.endpoint} (401: Invalid username or password.): check"
        )
        assert not hub.repositories

    def test_without_a_connection(self, hub, tmp_path, monkeypatch, package):
        push(package, "o/n")
        first = pull("hf://o/n", tmp_path / "first")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        started = time.monotonic()
        second = pull("hf://o/n", tmp_path / "second")
        assert (second.sha256, second.fetched.is_from_cache) == (first.sha256, True)
        with pytest.raises(ConnectionError, match=r"^http://127\.0\.0\.1:9 cannot be reached \([^\n]*\)$"):
            push(ENCODER, "o/n")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("licence", "identifier"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc_by-NC sa 4.0", "cc-by-nc-sa-4.0"),
        ("Apache 2.0", "apache-2.0"),
        ("MIT", "mit"),
        ("our own", "other"),
        ("", "unknown"),
    ],
)
def test_licences(licence, identifier):
    assert licence_identifier(licence) == identifier


def test_hostile_names():
    """Front matter is one block of YAML with letters in it, whatever names it holds."""
    hostile = "a\n---\n# <img src=x>: [b](c) `d` | \x1b[2J\u202e"
    text = card_data(hostile, [hostile], [hostile, "o/n"]).to_yaml()
    data = yaml.safe_load(text)
    assert "---" not in text.splitlines() and not re.search(r"[<>`#|\x1b\u202e]", text)
    assert (data["license"], data["datasets"], len(data["tags"])) == ("other", ["o/n"], 3)
