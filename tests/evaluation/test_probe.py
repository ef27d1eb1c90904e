"""Frozen features of prepared images, classifiers on them, and the linear segmentation probe in nnU-Net."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.linear_probe import LinearProbe
from nnunet_transformers.evaluation.classification_probe import CLASSIFIERS, probe_classification
from nnunet_transformers.evaluation.features import FrozenEncoder
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    TimmCheckpoint,
    create_timm,
    encoder_weights,
)
from tests.architectures.test_networks import SMALLEST, forms
from tests.conftest import write_dataset

OVERRIDES = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=(16, 16, 16))
    return folder / "prepared"


def checkpoint(patch_size=(16, 16, 16), channels=1):
    network = create_network("qt_unet_tiny", channels, 2, patch_size, **OVERRIDES)
    return EncoderCheckpoint(encoder_weights(network), "qt_unet_tiny", patch_size, channels, overrides=OVERRIDES)


class TestFeatures:
    @pytest.mark.parametrize("patch_size", [(16, 16, 16), (16, 16)], ids=["3d", "2d"])
    def test_mean_over_tiles(self, prepared, patch_size):
        images = PreparedImages(prepared)
        encoder = FrozenEncoder(checkpoint(patch_size, channels=3))
        value = encoder.features(images, images.names[0])
        starts = [(z, y, x) for z in (range(20) if len(patch_size) == 2 else (0, 4)) for y in (0, 8) for x in (0, 4)]
        means = []
        for start in starts:
            tile = images.read(images.names[0], start, patch_size).expand(3, *patch_size)[None]
            with torch.no_grad():
                means.append(encoder.network.encoder.encode(tile)[-1].flatten(2).mean(2)[0])
        np.testing.assert_allclose(value, torch.stack(means).mean(0).numpy(), rtol=1e-4, atol=1e-5)

    def test_timm(self, prepared):
        network = create_timm("resnet10t", 3, (16, 16)).eval()
        encoder = FrozenEncoder(TimmCheckpoint(network.state_dict(), "resnet10t", (16, 16), 3))
        images = PreparedImages(prepared)
        tiles = torch.stack(list(images.tiles(images.names[0], (16, 16))))
        with torch.no_grad():
            expected = network(tiles.expand(-1, 3, 16, 16)).mean(0)
        np.testing.assert_allclose(encoder.features(images, images.names[0]), expected.numpy(), rtol=1e-4, atol=1e-5)

    def test_wrong_channels(self, tmp_path):
        prepare(write_dataset(tmp_path / "raw", cases=2, channels=2), tmp_path / "prepared", patch_size=(16, 16, 16))
        images = PreparedImages(tmp_path / "prepared")
        with pytest.raises(ValueError, match="ball_0 has 2 channels, the encoder was trained on 3"):
            FrozenEncoder(checkpoint(channels=3)).features(images, "ball_0")


class TestClassification:
    def data(self, classes, images=120, distance=4.0):
        rng = np.random.default_rng(0)
        targets = np.arange(images) % classes
        centres = rng.normal(0, distance, (classes, 8))
        return centres[targets] + rng.normal(0, 1, (images, 8)), [f"label {t}" for t in targets]

    @pytest.mark.parametrize("classes", [2, 4])
    def test_tells_apart_what_can_be(self, classes):
        scores = probe_classification(*self.data(classes))
        assert {(s.classifier, s.share) for s in scores} == {(c, s) for c in CLASSIFIERS for s in (0.01, 0.1, 1.0)}
        for score in scores:
            assert score.auc > (0.85 if score.share < 1 else 0.99)
            if score.share == 1:
                assert score.accuracy > 0.95
                assert score.cases == 96

    def test_chance_where_nothing_can_be(self):
        features, labels = self.data(2, images=400)
        features = np.random.default_rng(1).normal(size=features.shape)
        for score in probe_classification(features, labels):
            assert 0.35 < score.auc < 0.65

    def test_fixed_split_and_seed(self):
        features, labels = self.data(2, distance=1.0)
        is_test = np.arange(len(labels)) >= 80
        first, second = (probe_classification(features, labels, is_test, repeats=3) for _ in range(2))
        assert first == second
        assert [s.cases for s in first[:3]] == [2, 8, 80]
        assert [s.auc_std == 0 for s in first[:3]] == [False, False, True]

    def test_mistakes(self):
        features, _ = self.data(2, images=12)
        with pytest.raises(ValueError, match="all images have the label"):
            probe_classification(features, ["a"] * 12)
        with pytest.raises(ValueError, match="rarest label has 1 images, 5 folds"):
            probe_classification(features, ["a"] * 11 + ["b"])

    def test_split_without_test(self, prepared, tmp_path):
        checkpoint().save(tmp_path / "encoder.pth")
        (tmp_path / "labels.csv").write_text("image,label,split\nball_0,1,train\nball_1,0,val\n")
        result = CliRunner().invoke(
            cli.app,
            ["probe", "classify", *(str(p) for p in (tmp_path / "encoder.pth", prepared, tmp_path / "labels.csv"))],
        )
        assert "must hold test and train or val, and both" in str(result.exception)

    def test_command(self, prepared, tmp_path):
        checkpoint().save(tmp_path / "encoder.pth")
        rows = [f"folder/ball_{case}_0000.nii.gz,{case % 2},{('train', 'test')[case // 2]}" for case in range(4)]
        (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows, "other,1,train"]))
        arguments = [tmp_path / "encoder.pth", prepared, tmp_path / "labels.csv", "-o", tmp_path / "scores.json"]
        result = CliRunner().invoke(cli.app, ["probe", "classify", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        assert "1 images of" in result.output
        scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
        assert len(scores) == 6
        assert all(0 <= score["auc"] <= 1 for score in scores)


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
def test_linear_probe_of_any_network(name, patch_size):
    probe = LinearProbe(create_network(name, 1, 2, patch_size), 3).train()
    image = torch.randn(2, 1, *patch_size)
    logits = probe(image)
    assert logits.shape == (2, 3, *patch_size)
    logits.sum().backward()
    assert all(p.grad is not None for p in probe.heads.parameters())
    assert all(p.grad is None for p in probe.network.parameters())
    # the frozen encoder is in evaluation mode during training too, without drop path
    assert all(torch.equal(a, b) for a, b in zip(*(probe.network.encode(image) for _ in range(2)), strict=True))
