"""Checkpoints of every kind are recognised by their content, read once, verified once, and refused with advice."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nnunet_transformers import cli, weights
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.matching import MatcherCheckpoint
from nnunet_transformers.weights import EncoderCheckpoint, PrimusCheckpoint, SealedCheckpoint, TimmCheckpoint, sealed

ENCODER = EncoderCheckpoint({"stem.proj.weight": torch.ones(2, 3)}, "qt_unet_tiny", (32, 32), 1)
CHECKPOINTS = [
    ENCODER,
    TimmCheckpoint({"conv1.weight": torch.ones(2)}, "resnet18", (64, 96), 3, spacing=(0.5, 1.0)),
    PrimusCheckpoint({"eva.pos_embed": torch.ones(1, 4)}, "primus_s", (16, 16, 16), 1, recipe={"epochs": 3}),
    MatcherCheckpoint({"a": torch.ones(1)}, {"dim": 4}, (1.0, 2.0, 3.0)),
    AlignmentCheckpoint({"a": torch.ones(1)}, {"text_encoder": "bert"}, 112),
]
CLASSES = [*(type(checkpoint) for checkpoint in CHECKPOINTS), ClassifierCheckpoint]


@pytest.fixture
def kinds(monkeypatch):
    """Unregister the kinds that a test defines."""
    monkeypatch.setattr(sealed, "_kinds", dict(sealed._kinds))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda c: c.kind)
def test_kind_is_recognised(checkpoint, ending, tmp_path, file_reads):
    path = tmp_path / f"file{ending}"
    sha256 = checkpoint.save(path)
    assert checkpoint.sha256 == sha256
    file_reads.update(load=0, hash=0)
    loaded = weights.load(path)
    assert loaded.sha256 == sha256
    assert file_reads == {"load": int(ending == ".pth"), "hash": 1}
    assert type(loaded) is type(checkpoint)
    fields = {f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded) if f.name != "weights"}
    assert fields == {name: getattr(checkpoint, name) for name in fields}
    assert all(torch.equal(loaded.weights[name], value) for name, value in checkpoint.weights.items())
    # the hash is that of the content, also of a changed copy
    assert dataclasses.replace(loaded, weights={"a": torch.zeros(1)}).sha256 != sha256


@pytest.mark.parametrize("kind_class", CLASSES, ids=lambda c: c.kind)
def test_another_kind_is_refused_with_advice(kind_class, tmp_path):
    other = CHECKPOINTS[kind_class is EncoderCheckpoint]
    other.save(tmp_path / "file.pth")
    with pytest.raises(
        ValueError,
        match=rf"file.pth is not a checkpoint of kind {kind_class.kind} \(its kind is {other.kind}\)\. `nnunet-",
    ):
        kind_class.load(tmp_path / "file.pth")
    with pytest.raises(ValueError, match=rf"is not a checkpoint of kind {kind_class.kind} \(it has state_dict\)"):
        torch.save({"state_dict": {}}, tmp_path / "file.pth")
        kind_class.load(tmp_path / "file.pth")


def test_one_of_several_kinds(tmp_path):
    CHECKPOINTS[3].save(tmp_path / "matcher.pth")
    with pytest.raises(ValueError, match=r"is not a .* of kind timm_encoder, encoder or primus .*is matcher.*convert"):
        weights.load(tmp_path / "matcher.pth", (TimmCheckpoint, EncoderCheckpoint, PrimusCheckpoint))
    ENCODER.save(tmp_path / "encoder.pth")
    assert weights.load(tmp_path / "encoder.pth", (TimmCheckpoint, EncoderCheckpoint)).name == "qt_unet_tiny"
    assert weights.PretrainedWeights.load(tmp_path / "encoder.pth").kind == "encoder"


@pytest.mark.parametrize(
    "number,advice", [(3, "this version reads format 1 or 2; update nnunet-transformers"), (0, "write it again")]
)
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda c: c.kind)
def test_other_formats_are_refused(checkpoint, number, advice, tmp_path, monkeypatch):
    monkeypatch.setattr(type(checkpoint), "format", number)
    checkpoint.save(tmp_path / "file.pth")
    weights.load(tmp_path / "file.pth")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=rf"has format {number} of kind {checkpoint.kind}, .*{advice}"):
        weights.load(tmp_path / "file.pth")


def test_a_package_defines_its_own_kind(kinds, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Own(SealedCheckpoint):
        kind: ClassVar[str] = "own"
        format: ClassVar[int] = 3
        scale: float

    Own({"a": torch.ones(1)}, 0.5).save(tmp_path / "own.pth")
    assert weights.load(tmp_path / "own.pth").scale == 0.5
    del sealed._kinds["own"]
    with pytest.raises(ValueError, match=r"\(its kind is own\)"):
        weights.load(tmp_path / "own.pth")
    with pytest.raises(TypeError, match="Without defines kind 'without' but no format"):
        type("Without", (SealedCheckpoint,), {"kind": "without"})
    with pytest.raises(TypeError, match="kind 'encoder' of Second is already that of EncoderCheckpoint"):
        type("Second", (SealedCheckpoint,), {"kind": "encoder", "format": 1})


@pytest.mark.parametrize(
    "change,message",
    [
        ({"network_weights": {"stem.proj.weight": torch.zeros(2, 3)}}, "was altered"),
        ({"network_weights": {"stem.proj.weight": torch.eye(3).to_sparse()}}, "holds a tensor that is not a plain one"),
        ({"network_weights": {"stem.proj.weight": [1.0]}}, "is not a checkpoint of kind encoder"),
        ({"network_weights": None}, "is not a checkpoint of kind encoder"),
        ({"encoder": {"sha256": "", "format": 2, "name": torch.ones(1)}}, "was altered"),
        ({"encoder": {"sha256": "", "format": 2, "seal": 2, "name": torch.ones(1)}}, "was altered"),
        ({"encoder": {"sha256": "", "format": True, "seal": 2}}, "has format True of kind encoder"),
        # the entry of other readers is sealed too, and no entry can be added
        ({"nnssl_adaptation_plan": {"key_to_encoder": "decoder"}}, "was altered"),
        ({"more": 1}, "was altered"),
    ],
)
def test_forged_content(change, message, tmp_path):
    ENCODER.save(tmp_path / "file.pth")
    torch.save({**torch.load(tmp_path / "file.pth", weights_only=True), **change}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        EncoderCheckpoint.load(tmp_path / "file.pth")


def test_altered_safetensors(tmp_path):
    """Its tensors alone are what other tools read; its description is what was sealed."""
    path = tmp_path / "file.safetensors"
    ENCODER.save(path)
    assert list(load_file(path)) == list(ENCODER.weights)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="was altered"):
        EncoderCheckpoint.load(path)
    for before, after, message in (
        (b"qt_unet_tiny", b"qt_unet_base", "its description is damaged"),
        (b"format", b"farmat", "its description is damaged"),
        (b"nnunet_transformers", b"nnunet_transformerz", "its metadata is damaged"),
    ):
        path.write_bytes(content.replace(before, after, 1))
        with pytest.raises(ValueError, match=message):
            EncoderCheckpoint.load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"file\.safetensors is truncated or not a safetensors file"):
        EncoderCheckpoint.load(path)
    text = "[1]"
    description = f"{hashlib.sha256(text.encode()).hexdigest()} {text}"
    save_file(dict(ENCODER.weights), path, {"nnunet_transformers": description})
    with pytest.raises(ValueError, match="its description is not that of a checkpoint"):
        EncoderCheckpoint.load(path)


def test_export_safetensors(tmp_path):
    ENCODER.save(tmp_path / "encoder.pth")
    arguments = ["export-safetensors", str(tmp_path / "encoder.pth")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0 and "encoder.safetensors: 1 tensors" in result.output.replace("\n", "")
    assert weights.load(tmp_path / "encoder.safetensors").sha256 == ENCODER.sha256
    with pytest.raises(ValueError, match=r"encoder\.safetensors exists"):
        raise CliRunner().invoke(cli.app, arguments).exception
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        raise CliRunner().invoke(cli.app, [*arguments, "-o", str(tmp_path / "other.pth")]).exception


def resealed(content, kind):
    """Content with the hash that a forger computes."""
    entry = {name: value for name, value in content[kind].items() if name != "sha256"}
    return {**content, kind: {**entry, "sha256": sealed.content_hash({**content, kind: entry})}}


def test_decoy_with_the_pinned_hash(tmp_path):
    """The hash that is compared with the plan's is the one that was verified, wherever another one stands."""
    pinned = ENCODER.save(tmp_path / "file.pth")
    content = torch.load(tmp_path / "file.pth", weights_only=True)
    zeroed = {**content, "network_weights": {"stem.proj.weight": torch.zeros(2, 3)}}
    for kind in ("timm_encoder", "other"):
        decoy = {"sha256": pinned, "format": 2}
        torch.save({kind: decoy, **resealed({kind: decoy, **zeroed}, "encoder")}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=r"was altered|is another file than when the plan was written"):
            weights.InitialWeights({"checkpoint": str(tmp_path / "file.pth"), "sha256": pinned})


def test_bytes_cannot_move_between_parts():
    """Without lengths, a tensor and its neighbour's name could change places in what is hashed."""
    z, y, w = (torch.tensor([ord(letter)], dtype=torch.uint8) for letter in "zyw")
    for hash_of, inner, differ in (
        (lambda weights: sealed._hash_without_seal(weights, {}), " torch.uint8 (1,) {}", False),
        (lambda weights: sealed.content_hash({"network_weights": weights}), "torch.uint8[1]{}", True),
    ):
        first = {"a": z, f"b{inner.format('y')}c": w}
        second = {f"a{inner.format('z')}b": y, "c": w}
        assert (hash_of(first) != hash_of(second)) == differ


@pytest.mark.parametrize("entry", [{"a": (1,)}, {1: "a"}, {"a": torch.ones(1)}], ids=["tuple", "key", "tensor"])
def test_what_json_cannot_tell_apart_is_not_hashed(entry):
    with pytest.raises(TypeError, match="is no plain type"):
        sealed.content_hash({"network_weights": {}, "encoder": entry})


def test_weights_with_nan_are_refused(tmp_path):
    dataclasses.replace(ENCODER, weights={"stem.proj.weight": torch.full((2, 3), torch.nan)}).save(
        tmp_path / "file.pth"
    )
    with pytest.raises(ValueError, match=r"diverged: stem\.proj\.weight holds NaN or infinity"):
        EncoderCheckpoint.load(tmp_path / "file.pth")


def test_description_of_another_layout(tmp_path):
    content = {"network_weights": {}, "encoder": {"name": "qt_unet_tiny", "format": 2, "seal": sealed.SEAL}}
    torch.save(resealed(content, "encoder"), tmp_path / "file.pth")
    with pytest.raises(ValueError, match="is not that of kind encoder: 'patch_size'"):
        EncoderCheckpoint.load(tmp_path / "file.pth")
