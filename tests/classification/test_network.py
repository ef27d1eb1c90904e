"""Classifiers of every network and checkpoint: a training step, frozen parameters, and the file."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nnunet_transformers.architectures import TOKEN_PREFIX, MiTClassifier, MiTPair, create_network
from nnunet_transformers.classification.checkpoint import ClassifierCheckpoint, preparation
from nnunet_transformers.classification.classifier import (
    BackboneDescription,
    ImageClassifier,
    load_pretrained,
    mean_probabilities,
    pretrained_backbone,
)
from nnunet_transformers.classification.crops import ImageCrops
from nnunet_transformers.pretraining.data import PreparedIndex
from nnunet_transformers.pretraining.data.own_plan import own_plan
from nnunet_transformers.testing.network import shallow
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    TimmCheckpoint,
    create_timm,
    encoder_weights,
    load_encoder_weights,
)
from tests.architectures.test_networks import PATCHES, SMALLEST, forms

TIMM = {"vit_tiny_patch16_224": (32, 32), "resnet10t": (32, 48)}


def checkpoint_of(network, description, **more):
    settings = {"columns": ("label",), "classes": ("a", "b", "c"), "multi_label": False, "spacing": (1.0, 1.0, 1.0)}
    settings |= {"normalization": ("ZScoreNormalization",), "channels": ("image",), **more}
    views = ImageCrops(description.patch_size, description.input_channels)
    weights = {name: value.detach() for name, value in network.state_dict().items()}
    return ClassifierCheckpoint(weights, description, views=views, **settings)


def descriptions():
    for form in forms(SMALLEST):
        name, patch_size = form.values
        # files have lists
        overrides = {k: list(v) if isinstance(v, tuple) else v for k, v in shallow(name, len(patch_size)).items()}
        yield BackboneDescription(name, patch_size, 1, overrides, False)
    yield BackboneDescription("mit_7", PATCHES["2d"], 1, {}, True)
    yield BackboneDescription("mit_7", PATCHES["3d"], 1, {"sr_ratios": [4, 2, 2, 1]}, True)
    for name, patch_size in TIMM.items():
        yield BackboneDescription(name, patch_size, 3)


@pytest.mark.parametrize(
    "description", list(descriptions()), ids=lambda d: f"{d.name}-{len(d.patch_size)}d-{d.has_token}"
)
def test_step_and_round_trip(description, tmp_path):
    network = ImageClassifier(description.build(), 3)
    image = torch.randn(2, description.input_channels, *description.patch_size)
    logits = network(image)
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    torch.optim.SGD(network.parameters(), 0.1).step()
    checkpoint_of(network, description).save(tmp_path / "classifier.pth")
    again = ClassifierCheckpoint.load(tmp_path / "classifier.pth")
    assert again.backbone == description
    with torch.no_grad():
        torch.testing.assert_close(again.build_network().eval()(image), network.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["qt_unet_tiny", "mit_7", *TIMM])
def test_frozen_backbone_does_not_move(name):
    is_timm = name in TIMM
    overrides = {"drop_path_rate": 0.5} if not is_timm else {}
    description = BackboneDescription(name, TIMM.get(name, (64, 96)), 3, overrides, name == "mit_7")
    network = ImageClassifier(description.build(), 2, is_frozen=True)
    assert not network.backbone.training
    before = {n: v.clone() for n, v in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1.0)
    image = torch.randn(4, 3, *description.patch_size)
    for _ in range(2):
        network.eval().train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(image), torch.tensor([0, 1, 1, 1])).backward()
        optimizer.step()
    # running statistics of batch norm are among them
    assert [n for n, v in network.state_dict().items() if not torch.equal(v, before[n])] == ["head.weight", "head.bias"]
    assert torch.equal(network.backbone(image), network.backbone(image))


class TestPretrained:
    def test_registered(self, tmp_path):
        arguments = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}
        network = create_network("qt_unet_tiny", 1, 2, (16, 16, 16), **arguments).eval()
        EncoderCheckpoint(encoder_weights(network), "qt_unet_tiny", (16, 16, 16), 1, overrides=arguments).save(
            tmp_path / "e.pth"
        )
        backbone, description, report = pretrained_backbone(load_pretrained(tmp_path / "e.pth"))
        image = torch.randn(2, 1, 16, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(backbone.eval()(image), network.encode(image)[-1].flatten(2).mean(2))
        assert description.patch_size == (16, 16, 16)
        assert "fresh: 0 tensors" in report
        larger, description, _ = pretrained_backbone(load_pretrained(tmp_path / "e.pth"), (32, 16, 16))
        assert larger(torch.randn(1, 1, 32, 16, 16)).shape == (1, network.feature_channels[-1])
        with pytest.raises(ValueError, match=r"\(16, 16\) has 2 axes, the encoder's patches \(16, 16, 16\) have 3"):
            pretrained_backbone(load_pretrained(tmp_path / "e.pth"), (16, 16))

    @pytest.mark.parametrize("name", TIMM)
    def test_timm(self, name, tmp_path):
        network = create_timm(name, 1, TIMM[name]).eval()
        TimmCheckpoint(network.state_dict(), name, TIMM[name], 1).save(tmp_path / "e.pth")
        backbone, description, report = pretrained_backbone(load_pretrained(tmp_path / "e.pth"))
        image = torch.randn(2, 1, *TIMM[name])
        with torch.no_grad():
            assert torch.equal(backbone.eval()(image), network(image))
        assert name in report
        larger, description, _ = pretrained_backbone(load_pretrained(tmp_path / "e.pth"), (64, 64))
        with torch.no_grad():
            features = larger.eval()(torch.randn(2, 1, 64, 64))
        assert features.shape == (2, network.num_features)
        # the description in a file rebuilds the backbone
        assert [n for n, v in description.build().state_dict().items() if v.shape != larger.state_dict()[n].shape] == []

    def test_token_of_unimiss(self):
        sizes = (32, 64), (16, 32, 64)
        pair = MiTPair(*sizes, input_channels_2d=1)
        weights = {**pair.form_weights(3), **pair.token_weights(3)}
        arguments = {"patch_embed_stride": (2, 4, 4)}
        checkpoint = EncoderCheckpoint(weights, "mit_7", sizes[1], 1, overrides=arguments)
        backbone, description, report = pretrained_backbone(checkpoint)
        assert isinstance(backbone, MiTClassifier)
        assert description.has_token
        image = torch.randn(1, 1, *sizes[1])
        form = pair.form(3)
        with torch.no_grad():
            features, token = form.encoder(form.stem(image))
            expected = (backbone.norm(token)[:, 0] + backbone.norm(features[-1].flatten(2).mT).mean(1)) / 2
            torch.testing.assert_close(backbone(image), expected)
        assert TOKEN_PREFIX not in report
        # segmentation has no use for the token, which the load report lists as unused
        unused = load_encoder_weights(create_network("mit_7", 1, 2, sizes[1], **arguments), checkpoint).unused
        assert unused == list(pair.token_weights(3))
        without = dataclasses.replace(checkpoint, weights=pair.form_weights(3))
        assert not pretrained_backbone(without)[1].has_token

    def test_no_encoder(self, tmp_path):
        torch.save({"weights": {}}, tmp_path / "e.pth")
        with pytest.raises(ValueError, match="is not a checkpoint of kind encoder or timm_encoder"):
            load_pretrained(tmp_path / "e.pth")


def test_mean_over_parts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    parts = torch.randn(5, 2, 4)
    logits = network(parts)
    for multi_label, expected in ((False, logits.softmax(1)), (True, logits.sigmoid())):
        torch.testing.assert_close(mean_probabilities(network, iter(parts), multi_label, 2), expected.mean(0))


class TestFile:
    @pytest.fixture
    def checkpoint(self):
        description = BackboneDescription("resnet10t", (32, 32), 1)
        plans = {"foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}}}
        more = {"plans": plans, "configuration": "2d", "normalization": ("CTNormalization",)}
        return checkpoint_of(ImageClassifier(description.build(), 3), description, **more)

    def test_damage(self, checkpoint, tmp_path):
        file = tmp_path / "classifier.pth"
        checkpoint.save(file)
        content = torch.load(file, weights_only=True)
        content["network_weights"]["head.bias"][0] += 1
        torch.save(content, tmp_path / "altered.pth")
        with pytest.raises(ValueError, match="was altered after it was written"):
            ClassifierCheckpoint.load(tmp_path / "altered.pth")
        (tmp_path / "short.pth").write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="truncated"):
            ClassifierCheckpoint.load(tmp_path / "short.pth")
        torch.save({"network_weights": {}}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="is not a checkpoint of kind classifier"):
            ClassifierCheckpoint.load(tmp_path / "other.pth")

    def test_images_that_were_prepared_otherwise(self, checkpoint, tmp_path):
        index = PreparedIndex((), (), ("CT",), (3.0, 1.0, 1.0), ("CTNormalization",), checkpoint.plans, "2d")
        checkpoint.check_images(index, tmp_path)
        other = {"foreground_intensity_properties_per_channel": {"0": {"mean": 2.0}}}
        for change, message in (
            ({"channels": ("a", "b")}, r"have 2 channels, the classifier was trained on 1 \(image\)"),
            ({"normalization": ("ZScoreNormalization",)}, "has normalization ZScoreNormalization, .* on CTNorm"),
            ({"spacing": (3.0, 2.0, 1.0)}, r"has spacing 2, 1 mm, the classifier was trained on 1, 1 mm; prepare"),
            ({"plans": other}, "was normalised with other CT intensities"),
        ):
            with pytest.raises(ValueError, match=message):
                checkpoint.check_images(dataclasses.replace(index, **change), tmp_path)
        with pytest.raises(ValueError, match=r"has spacing 2, 1, 1 mm"):
            dataclasses.replace(
                checkpoint, backbone=dataclasses.replace(checkpoint.backbone, patch_size=(8, 8, 8))
            ).check_images(dataclasses.replace(index, spacing=(2.0, 1.0, 1.0)), tmp_path)
        canvas = dataclasses.replace(checkpoint, views=dataclasses.replace(checkpoint.views, canvas=(32, 32)))
        canvas.check_images(dataclasses.replace(index, spacing=(3.0, 2.0, 1.0)), tmp_path)

    def test_channels_in_another_order(self, checkpoint, tmp_path):
        trained = dataclasses.replace(checkpoint, channels=("T1", "FLAIR"))
        index = PreparedIndex((), (), ("T1", "FLAIR"), (1.0, 1.0), trained.normalization, trained.plans, "2d")
        trained.check_images(index, tmp_path)
        # other names may be of the same
        trained.check_images(dataclasses.replace(index, channels=("t1w", "flair")), tmp_path)
        with pytest.raises(ValueError, match="are FLAIR, T1, in another order than T1, FLAIR, which the classifier"):
            trained.check_images(dataclasses.replace(index, channels=("FLAIR", "T1")), tmp_path)

    def test_other_longest_sides(self, checkpoint, tmp_path):
        """PNG files have a spacing of 1 mm, however much they were shrunk."""
        settings = ["rescale_to_0_1"], (1.0, 1.0), [{}], (32, 32), "NaturalImage2DIO", 1.0
        plans = {side: own_plan(*settings, longest=side) for side in (None, 256, 512)}
        folders = {
            side: PreparedIndex((), (), ("image",), (1.0, 1.0), ("RescaleTo01Normalization",), plan, "pretraining")
            for side, plan in plans.items()
        }
        normalization = folders[None].normalization
        canvas = dataclasses.replace(checkpoint.views, canvas=(32, 32))
        for trained, found, views, message in (
            (256, 256, checkpoint.views, None),
            (256, 512, checkpoint.views, "prepared with --longest 512, the classifier's images with --longest 256"),
            (256, None, checkpoint.views, "was prepared without --longest, the classifier's images with --longest 256"),
            (None, 256, checkpoint.views, "was prepared with --longest 256, the classifier's images without --longest"),
            (256, 512, canvas, None),
            (256, None, canvas, "was prepared without --longest"),  # which crops
        ):
            more = {"plans": plans[trained], "normalization": normalization, "views": views}
            with pytest.raises(ValueError, match=message) if message else nullcontext():
                dataclasses.replace(checkpoint, **more).check_images(folders[found], tmp_path)

    def test_preparation(self, checkpoint, tmp_path):
        checkpoint.save(tmp_path / "classifier.pth")
        assert preparation(tmp_path / "classifier.pth") == (checkpoint.plans, "2d")
        dataclasses.replace(checkpoint, plans=None).save(tmp_path / "old.pth")
        with pytest.raises(ValueError, match="does not specify how its images were prepared"):
            preparation(tmp_path / "old.pth")
