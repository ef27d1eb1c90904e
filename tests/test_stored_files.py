"""Files that earlier versions wrote: every later version must read them, and its networks return the same numbers.

``tests/data/make.py`` made those of ``format_1``, by the version that first wrote them. They are never made again: a
version that cannot read one has broken what users have on their disks. A new format gets a folder beside these.
``format_2`` has the same weights and descriptions, under the hash over the whole file.
"""

from __future__ import annotations

import json
import lzma
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures import primus
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.synthetic_reports import write_text_encoder
from nnunet_transformers.architectures import create_network
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint
from nnunet_transformers.detection.checkpoint import DetectorCheckpoint
from nnunet_transformers.pretraining.alignment import AlignmentCheckpoint
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.encoders.text import load_tokenizer, tokenize
from nnunet_transformers.pretraining.matching.embedding import EmbeddingMatcher, MatcherCheckpoint
from nnunet_transformers.pretraining.methods.mgca import MGCA
from nnunet_transformers.sharing.load import load_package
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    PrimusCheckpoint,
    TimmCheckpoint,
    create_primus,
    load_checkpoint,
    load_encoder,
    load_encoder_weights,
    load_primus_weights,
)
from nnunet_transformers.weights.nnunet_checkpoint import read_checkpoint
from tests.data.outputs import RECIPE, REPORTS, SPACING, TinyPrimus, digest, fixed_input, network_digest

STORED = Path(__file__).parent / "data" / "format_1"
EXPECTED = json.loads((STORED / "expected.json").read_text())
SECOND = STORED.with_name("format_2")
NETWORKS, PLANS = EXPECTED["networks"], EXPECTED["plans"]
# entry of the file, and class that reads it
KINDS = {
    "encoder": ("encoder", EncoderCheckpoint),
    "timm": ("timm_encoder", TimmCheckpoint),
    "primus": ("primus", PrimusCheckpoint),
    "matcher": ("matcher", MatcherCheckpoint),
    "alignment": ("alignment", AlignmentCheckpoint),
    "classifier": ("classifier", ClassifierCheckpoint),
    "detector": ("detector", DetectorCheckpoint),
}
CHECKPOINTS = sorted(path.name.partition(".")[0] for path in STORED.glob("*.pth*"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The stored files as they were written, none compressed."""
    return unpacked(STORED, tmp_path_factory.mktemp("stored") / STORED.name)


def unpacked(folder: Path, target: Path) -> Path:
    """Copy a folder of stored files, as they were written."""
    shutil.copytree(folder, target)
    for path in target.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    return target


def assert_as_stored(name, outputs):
    """Outputs of a network are what they were when the file was written."""
    expected = NETWORKS[name]
    assert len(outputs) == len(expected)
    for output, numbers in zip(outputs, expected, strict=True):
        found = digest(output) if isinstance(output, torch.Tensor) else output
        np.testing.assert_allclose(found, numbers, rtol=1e-5, atol=1e-5)


def test_one_of_each_kind_is_stored():
    assert {name.partition("_")[0] for name in CHECKPOINTS} == set(KINDS)
    # detectors came with the hash over the whole file, and have had one format
    second = {path.name.partition(".")[0].partition("_")[0] for path in SECOND.iterdir()}
    assert second == set(KINDS) - {"detector"}


@pytest.mark.parametrize("path", sorted(SECOND.iterdir()), ids=lambda path: path.name.partition(".")[0])
def test_second_format(path, stored, tmp_path):
    name = path.name.partition(".")[0]
    kind, checkpoint_class = KINDS[name.partition("_")[0]]
    (tmp_path / name).write_bytes(lzma.decompress(path.read_bytes()))
    assert load_checkpoint(tmp_path / name)[kind]["format"] == 2
    first, second = checkpoint_class.load(stored / f"{name}.pth"), checkpoint_class.load(tmp_path / name)
    for field in fields(first):
        if field.name != "weights":
            assert getattr(first, field.name) == getattr(second, field.name)
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    assert first.sha256 != second.sha256


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_format_and_description(name, stored):
    kind, checkpoint_class = KINDS[name.partition("_")[0]]
    description = load_checkpoint(stored / f"{name}.pth")[kind]
    assert description["format"] == 1
    checkpoint = checkpoint_class.load(stored / f"{name}.pth")
    assert checkpoint.kind == kind
    if kind not in ("alignment",):
        assert checkpoint.recipe == RECIPE
        assert checkpoint.spacing == SPACING[-len(checkpoint.spacing) :]
    if kind not in ("alignment", "matcher"):
        assert checkpoint.num_cases == 12
        assert set(checkpoint.versions) == {"nnunet-transformers", "nnunetv2", "torch", "timm"}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.startswith("encoder")])
def test_encoder(name, stored):
    checkpoint = load_encoder(stored / f"{name}.pth")
    network = create_network(checkpoint.name, 1, 2, checkpoint.patch_size, **checkpoint.overrides).eval()
    report = load_encoder_weights(network, checkpoint)
    for part in ("stem.", "encoder."):
        assert report.coverage(dict(network.named_parameters()), part) == 1
    assert not report.adapted
    assert_as_stored(name, network.encode(fixed_input(1, 1, *checkpoint.patch_size)))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.startswith("timm")])
def test_timm_encoder(name, stored):
    checkpoint = TimmCheckpoint.load(stored / f"{name}.pth")
    assert f"timm_{checkpoint.name}" == name
    assert_as_stored(name, [checkpoint.build_network().eval()(fixed_input(2, 3, *checkpoint.patch_size))])


@torch.no_grad()
def test_primus(stored, monkeypatch):
    monkeypatch.setattr(primus, "PrimusS", TinyPrimus)
    checkpoint = PrimusCheckpoint.load(stored / "primus.pth")
    network = create_primus(checkpoint.name, 1, checkpoint.patch_size).eval()
    report = load_primus_weights(network, checkpoint.patch_size, checkpoint)
    assert all(name.startswith("up_projection.") for name in report.fresh)
    tokens = network.down_projection(fixed_input(1, 1, *checkpoint.patch_size)).flatten(2).transpose(1, 2)
    encoded, _ = network.eva(tokens)
    assert_as_stored("primus", [tokens, encoded])


@torch.no_grad()
def test_matcher(stored):
    matcher = EmbeddingMatcher(str(stored / "matcher.pth"))
    assert matcher.cycle_error == 4 * max(SPACING)
    assert_as_stored("matcher", matcher.network(fixed_input(1, 1, 20, 16, 24)))


def test_alignment(stored, tmp_path):
    checkpoint = AlignmentCheckpoint.load(stored / "alignment.pth")
    assert checkpoint.max_length == 24
    bert = str(write_text_encoder(tmp_path / "bert", dim=16))
    method = checkpoint.build_method(MGCA, bert)
    batch = {"image": fixed_input(2, 1, 32, 32), **tokenize(load_tokenizer(bert), REPORTS, 24)}
    with torch.no_grad():
        losses, features = method.losses(batch)
    assert_as_stored("alignment", [features, [float(losses[name]) for name in ("ita", "cta", "cpa")]])


@torch.no_grad()
def test_classifier(stored):
    checkpoint = ClassifierCheckpoint.load(stored / "classifier.pth")
    assert checkpoint.classes == ("ball", "cube", "none")
    assert checkpoint.scores == {"val_auc": 0.75}
    assert (checkpoint.views.canvas, checkpoint.views.intensity_range) == ((20, 20, 20), (-100.0, 200.0))
    patch_size = checkpoint.backbone.patch_size
    assert_as_stored("classifier", [checkpoint.build_network().eval()(fixed_input(2, 1, *patch_size))])


@torch.no_grad()
def test_detector(stored):
    checkpoint = DetectorCheckpoint.load(stored / "detector.pth")
    assert (checkpoint.classes, checkpoint.widths) == (("mass", "nodule"), (4, 4, 8))
    assert (checkpoint.views.canvas, checkpoint.views.keep_aspect) == ((32, 32), False)
    assert checkpoint.anchors[2][0] == [10.0, 13.0]
    assert_as_stored("detector", checkpoint.build_network().eval()(fixed_input(2, 1, *checkpoint.backbone.patch_size)))


def test_prepared_images(stored):
    images = PreparedImages(stored / "prepared")
    assert images.names == ["ball_0", "ball_1"]
    parts = [images.read(name, (0, 0, 0), images.shapes[name][1:]) for name in images.names]
    assert_as_stored("prepared", parts)


@torch.no_grad()
def test_package(stored):
    (loaded,) = load_package(stored / "package", CPU)
    network = loaded.predictor.network.eval()
    network.load_state_dict(loaded.predictor.list_of_parameters[0])
    assert_as_stored("package", [network(fixed_input(1, 1, *network.patch_size))])


@torch.no_grad()
def test_trained_fold(stored):
    """Of a training with nnU-Net's command: predictions with it, and packages."""
    (model,) = (stored / "model").iterdir()
    content, unpickled = read_checkpoint(model / "fold_0" / "checkpoint_final.pth")
    assert not unpickled
    assert content["trainer_name"] == model.name.partition("__")[0]
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    network = predictor.network.eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    # the package was made of it
    assert_as_stored("package", [network(fixed_input(1, 1, *network.patch_size))])


@pytest.mark.parametrize("name", PLANS)
def test_plan(name):
    """The network of each configuration is the same, name by name and shape by shape."""
    plans = json.loads((STORED / "plans" / name).read_text())
    for configuration, expected in PLANS[name].items():
        assert network_digest(plans["configurations"][configuration]) == expected, configuration
