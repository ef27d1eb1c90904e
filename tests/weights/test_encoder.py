"""Encoder checkpoints are written, refused, and loaded into networks that differ."""

from __future__ import annotations

import pickle

import pytest
import torch
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    encoder_weights,
    load_checkpoint,
    load_encoder,
    load_encoder_weights,
)
from nnunet_transformers.weights.network_weights import NetworkWeights
from tests.architectures.test_networks import SMALLEST, forms

TINY = {"embed_dim": 12, "num_stages": 2}


class Planned:
    """Stands for a configuration of a plan."""

    patch_size, dataset_json = (32, 32), {"labels": {"background": 0, "ball": 1}}

    def build_network(self, *_, **__):
        return create_network("qt_unet_tiny", 1, 2, self.patch_size, **TINY)


def checkpoint_of(name, patch_size, channels=1, **overrides):
    network = create_network(name, channels, 2, patch_size, **overrides)
    checkpoint = EncoderCheckpoint(
        encoder_weights(network),
        name,
        patch_size,
        channels,
        overrides=overrides,
        spacing=(1.0,) * len(patch_size),
        normalization=("ZScoreNormalization",) * channels,
        method="qt_ssl",
        recipe={"epochs": 3},
        num_cases=7,
    )
    return network, checkpoint


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
def test_round_trip(name, patch_size, tmp_path):
    network, checkpoint = checkpoint_of(name, patch_size)
    path = tmp_path / "encoder.pth"
    checkpoint.save(path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = load_encoder(path)
    assert (loaded.name, loaded.patch_size, loaded.recipe) == (name, patch_size, {"epochs": 3})
    twin = create_network(name, 1, 3, patch_size)
    report = load_encoder_weights(twin, loaded)
    assert report.coverage(dict(twin.named_parameters()), "encoder.") == 1
    assert not report.adapted
    assert not report.unused
    assert all(fresh.startswith("decoder.") for fresh in report.fresh)
    image = torch.randn(1, 1, *patch_size)
    network.eval(), twin.eval()
    with torch.no_grad():
        for ours, theirs in zip(twin.encode(image), network.encode(image), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", SMALLEST)
def test_other_patch_and_channels(name):
    axes = max(get_network(name).dimensions)
    _, checkpoint = checkpoint_of(name, (64, 64, 64)[:axes])
    patch_size = (32, 64, 96)[:axes]
    network = create_network(name, 3, 2, patch_size).eval()
    report = load_encoder_weights(network, checkpoint)
    assert report.coverage(dict(network.named_parameters()), "encoder.") == 1
    assert report.coverage(dict(network.named_parameters()), "stem.") == 1
    assert any("channels 1 to 3" in how for how in report.adapted.values())
    with torch.no_grad():
        assert all(f.isfinite().all() for f in network.encode(torch.randn(1, 3, *patch_size)))


def test_equal_channels_are_seen_as_one():
    source, checkpoint = checkpoint_of("qt_unet_tiny", (32, 32))
    network = create_network("qt_unet_tiny", 3, 2, (32, 32)).eval()
    load_encoder_weights(network, checkpoint)
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = source.eval().encode(image)[-1]
        torch.testing.assert_close(network.encode(image.expand(-1, 3, -1, -1))[-1], expected, rtol=1e-4, atol=1e-5)


def test_stride_and_windows():
    _, checkpoint = checkpoint_of("qt_unet_tiny", (64, 64, 64))
    network = create_network("qt_unet_tiny", 1, 2, (32, 32, 32), patch_embed_stride=2, window_sizes=[4, 4, 4, 2])
    report = load_encoder_weights(network, checkpoint)
    assert report.adapted["stem.proj.weight"] == "kernel 4x4x4 to 2x2x2"
    assert report.adapted["encoder.stages.0.blocks.0.attn.bias.table"] == "offsets 13x13x13 to 7x7x7"
    flat = torch.ones(1, 1, 4, 4, 4)
    before, after = checkpoint.weights["stem.proj.weight"], network.stem.proj.weight
    torch.testing.assert_close((after * flat[..., :2, :2, :2]).sum(), (before * flat).sum(), rtol=1e-3, atol=1e-3)


class TestRefused:
    @pytest.fixture
    def path(self, tmp_path):
        checkpoint_of("qt_unet_tiny", (32, 32))[1].save(tmp_path / "encoder.pth")
        return tmp_path / "encoder.pth"

    def test_altered(self, path):
        content = load_checkpoint(path)
        content["network_weights"]["encoder.norm.weight"][0] += 1e-3
        torch.save(content, path)
        with pytest.raises(ValueError, match="was altered"):
            load_encoder(path)
        content = load_checkpoint(path)
        content["encoder"]["num_cases"] = 1000
        torch.save(content, path)
        with pytest.raises(ValueError, match="was altered"):
            load_encoder(path)

    def test_truncated(self, path):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match="truncated or not a checkpoint"):
            load_encoder(path)

    def test_objects_that_would_run(self, path):
        class Payload:
            def __reduce__(self):
                return print, ("unpickled",)

        with path.open("wb") as file:
            pickle.dump({"encoder": Payload()}, file)
        with pytest.raises(ValueError, match=r"truncated or not a checkpoint|refused"):
            load_encoder(path)

    def test_something_else(self, tmp_path):
        torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="is not a checkpoint of kind encoder or timm_encoder"):
            load_encoder(tmp_path / "other.pth")

    def test_no_plain_types(self, tmp_path):
        _, checkpoint = checkpoint_of("qt_unet_tiny", (32, 32))
        checkpoint.recipe["optimizer"] = object()
        with pytest.raises(TypeError):
            checkpoint.save(tmp_path / "encoder.pth")
        assert list(tmp_path.iterdir()) == []

    def test_another_family_or_dimension(self):
        _, checkpoint = checkpoint_of("qt_unet_tiny", (32, 32))
        with pytest.raises(ValueError, match=r"are of QTUNet \(qt_unet_tiny\), the network is MiT"):
            load_encoder_weights(create_network("mit_7", 1, 2, (64, 64)), checkpoint)
        with pytest.raises(ValueError, match="are of a 2D network, this one is 3D"):
            load_encoder_weights(create_network("qt_unet_tiny", 1, 2, (32, 32, 32)), checkpoint)

    @pytest.mark.parametrize("patch_size", [(32, 32), (32, 32, 32)])
    def test_another_dimension_where_no_file_describes_the_network(self, patch_size):
        """Linear layers would fit."""
        source = create_network("qt_unet_tiny", 1, 2, patch_size, **TINY)
        network = create_network("qt_unet_tiny", 1, 2, {2: (32, 32, 32), 3: (32, 32)}[len(patch_size)], **TINY)
        message = f"are of a {len(patch_size)}D network, this one is {5 - len(patch_size)}D"
        with pytest.raises(ValueError, match=message):
            NetworkWeights({f"module.{n}": v for n, v in source.state_dict().items()}, "a file").load_into(network)

    @pytest.mark.parametrize(
        "name,patch_size,given,heads",
        [
            ("setr_pup_tiny", (32, 32), {"depth": 3}, 12),
            ("setr_pup_dinov3_small", (32, 32), {"depth": 1}, 12),
            ("mit_7", (64, 64), {}, (2, 4, 8, 16)),
            ("primus_v2_s", (16, 16, 16), {"depth": 1}, 11),
            ("qt_unet_tiny", (32, 32), TINY, 6),
        ],
    )
    def test_another_number_of_heads(self, name, patch_size, given, heads):
        """Features would be others, though every shape but that of bias tables is the same."""
        source, checkpoint = checkpoint_of(name, patch_size, **given)
        network = create_network(name, 1, 2, patch_size, **{**given, "num_heads": heads})
        before = {name: value.clone() for name, value in network.state_dict().items()}
        described = NetworkWeights(source.state_dict(), "a file", source)
        for weights in (checkpoint, described):
            with pytest.raises(ValueError, match=r"have \d attention heads in encoder\..*this network has .*num_heads"):
                weights.load_into(network)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_whole_networks_of_too_few_weights(self, monkeypatch, tmp_path):
        """As when the encoder of another width is exported for nnU-Net's option."""
        monkeypatch.setattr(PlannedConfiguration, "load", lambda *_: Planned())
        checkpoint_of("qt_unet_tiny", (32, 32), **{**TINY, "embed_dim": 24})[1].save(tmp_path / "encoder.pth")
        output = tmp_path / "full.pth"
        command = ["export-full", tmp_path / "encoder.pth", "-d", 900, "-p", "P", "-c", "2d", "-o", output]
        result = CliRunner().invoke(cli.app, [*map(str, command)])
        assert "less than the 50% asked for (--min-coverage)" in str(result.exception) and not output.exists()
        result = CliRunner().invoke(cli.app, [*map(str, command), "--min-coverage", "0"])
        assert result.exit_code == 0 and output.exists(), result.output


def test_nnssl_can_read_it(tmp_path):
    _, checkpoint = checkpoint_of("qt_unet_tiny", (32, 32, 32))
    checkpoint.save(tmp_path / "encoder.pth")
    content = torch.load(tmp_path / "encoder.pth", weights_only=True)
    plan = content["nnssl_adaptation_plan"]
    architecture = plan["architecture_plans"]
    module, _, attribute = architecture["arch_class_name"].rpartition(".")
    network_class = getattr(__import__(module, fromlist=[attribute]), attribute)
    twin = network_class(input_channels=1, num_classes=2, **architecture["arch_kwargs"])
    missing, unexpected = twin.load_state_dict(content["network_weights"], strict=False)
    assert not unexpected
    assert all(name.startswith("decoder.") for name in missing)
    assert {plan["key_to_encoder"], plan["key_to_stem"]} == {"encoder", "stem"}
    assert plan["pretrain_num_input_channels"] == 1
    assert plan["recommended_downstream_patchsize"] == [32, 32, 32]
