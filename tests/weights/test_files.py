"""Weight files are read without unpickling and written whole."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.weights import find_weights, load_checkpoint, load_state_dict, save_checkpoint


@pytest.mark.parametrize("key", ["network_weights", "state_dict", "model", None])
def test_weights_wherever_they_are(tmp_path, key):
    weights = {"a": torch.ones(2)}
    save_checkpoint({key: weights, "epoch": 3} if key else weights, tmp_path / "file.pth")
    assert torch.equal(load_state_dict(tmp_path / "file.pth")["a"], weights["a"])


def test_objects_are_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "model": torch.nn.ReLU()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds torch\.nn\.modules\.activation\.ReLU besides weights.*refused"):
        load_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("variables", [("FORCE_NO",), ("FORCE",), ("FORCE", "FORCE_NO")], ids=lambda v: "_and_".join(v))
def test_pytorchs_variables_change_nothing(tmp_path, monkeypatch, variables):
    names = [f"TORCH_{name}_WEIGHTS_ONLY_LOAD" for name in variables]
    for name in names:
        monkeypatch.setenv(name, "1")
    torch.save({"a": torch.ones(1), "model": torch.nn.ReLU()}, tmp_path / "objects.pth")
    with pytest.raises(ValueError, match=r"holds torch\.nn\.modules"):
        load_checkpoint(tmp_path / "objects.pth")
    save_checkpoint({"a": torch.ones(1)}, tmp_path / "file.pth")
    assert load_checkpoint(tmp_path / "file.pth")["a"] == 1
    assert [os.environ[name] for name in names] == ["1"] * len(names)


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "truncated"])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "file.pth"
    save_checkpoint({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ValueError, match="truncated or not a checkpoint"):
        load_checkpoint(path)


def test_missing_and_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "file.pth")
    save_checkpoint({"epoch": 1}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="holds no state dict; it has epoch"):
        load_state_dict(tmp_path / "file.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="has no umask")
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_who_may_read_a_file_is_the_users_choice(tmp_path, umask, ending):
    before = os.umask(umask)
    try:
        save_checkpoint({"network_weights": {"a": torch.ones(1)}}, tmp_path / f"file{ending}")
    finally:
        os.umask(before)
    assert (tmp_path / f"file{ending}").stat().st_mode & 0o777 == 0o666 & ~umask


def test_nothing_half_written(tmp_path):
    path = tmp_path / "file.pth"
    save_checkpoint({"a": torch.zeros(1)}, path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"a": lambda: None}, path)
    assert load_state_dict(path)["a"] == 0


@pytest.mark.parametrize(
    "malformed",
    [
        {"network": None},
        {"network": 3},
        {"nnssl_adaptation_plan": {"architecture_plans": {"arch_class_name": "X"}}},
    ],
    ids=lambda entries: f"{entries}",
)
def test_malformed_entries_are_left_out(malformed, tmp_path):
    network = create_network("qt_unet_tiny", 1, 2, (32, 32), embed_dim=12, num_stages=2)
    table = "encoder.stages.0.blocks.0.attn.bias.table"
    weights = {**network.state_dict(), "steps": 3, 4: torch.ones(1), table: torch.ones(169)}
    torch.save({"network_weights": weights, **malformed}, tmp_path / "file.pth")
    report = find_weights(tmp_path / "file.pth").weights.load_into(network)
    assert report.fresh == {table: "shape (169,) in the source, (169, 3) here"} and not report.unused


def test_weights_that_are_none(tmp_path):
    plan = {"nnssl_adaptation_plan": {"architecture_plans": {"arch_class_name": "X"}}}
    torch.save({"network_weights": [torch.ones(1)], **plan}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth is truncated or not an nnssl checkpoint"):
        find_weights(tmp_path / "file.pth")
    # what a release calls so, as a single number
    names = ("encoder.patch_embed.proj.weight", "encoder.layers.0.blocks.0.norm1.weight", "output.weight")
    torch.save({name: torch.tensor(1.0) for name in names}, tmp_path / "file.pth")
    assert find_weights(tmp_path / "file.pth").weights.weights.keys() == set(names)
