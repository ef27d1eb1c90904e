"""timm networks as stem and encoder of registered networks: equal features, other patches, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.layers import resize_position_embedding
from nnunet_transformers.weights import (
    EncoderCheckpoint,
    TimmCheckpoint,
    create_timm,
    encoder_specification,
    find_weights,
    initialise,
    load_encoder,
    load_encoder_weights,
)
from nnunet_transformers.weights.timm_encoder import TAGS, tagged

VIT, RESNET = "vit_tiny_patch16_224", "resnet18"
SIZE, OTHER = (64, 96), (96, 128)


def timm_network(name, size=SIZE, channels=3):
    """Build a timm network all of whose parameters and statistics differ from their initial values."""
    network = create_timm(name, channels, size).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network


def written(network, name, path, size=SIZE, channels=3):
    """Write its checkpoint as MGCA does."""
    TimmCheckpoint(network.state_dict(), name, size, channels, method="MGCA", num_cases=7).save(path)
    return path


@pytest.mark.parametrize("name", [VIT, RESNET])
class TestFeatures:
    def test_are_those_of_timm(self, name, tmp_path):
        source = timm_network(name)
        checkpoint = load_encoder(written(source, name, tmp_path / "encoder.pth"))
        assert (checkpoint.method, checkpoint.num_cases, checkpoint.patch_size) == ("MGCA", 7, SIZE)
        # through a file of ours as well
        checkpoint.save(tmp_path / "ours.pth")
        for file in ("encoder.pth", "ours.pth"):
            network = create_network(checkpoint.name, 3, 2, SIZE, **checkpoint.overrides).eval()
            report = initialise(network, encoder_specification(tmp_path / file))
            for part in ("stem.", "encoder."):
                assert report.coverage(dict(network.named_parameters()), part) == 1
            assert not report.adapted
            assert not report.unused
            assert all(fresh.startswith("decoder.") for fresh in report.fresh)
            image = torch.randn(2, 3, *SIZE)
            with torch.no_grad():
                features = network.encode(image)
                expected = source.forward_features(image)
                maps = source.forward_intermediates(image, intermediates_only=True) if name == RESNET else []
            if name == VIT:
                expected = expected[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
            torch.testing.assert_close(features[-1], expected, rtol=1e-5, atol=1e-5)
            for ours, theirs in zip(features if maps else [], maps, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_of_one_channel_and_another_patch(self, name, tmp_path):
        source = timm_network(name)
        checkpoint = load_encoder(written(source, name, tmp_path / "encoder.pth"))
        network = create_network(checkpoint.name, 1, 2, OTHER, **checkpoint.overrides).eval()
        report = load_encoder_weights(network, checkpoint)
        changes = ["channels 3 to 1", "grid 4x6 to 6x8"] if name == VIT else ["channels 3 to 1"]
        assert list(report.adapted.values()) == changes
        assert all(fresh.startswith("decoder.") for fresh in report.fresh)
        twin, weights = create_timm(name, 3, OTHER).eval(), source.state_dict()
        if name == VIT:
            token, grid = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
            weights["pos_embed"] = torch.cat([token, resize_position_embedding(grid, (4, 6), (6, 8)).flatten(1, 2)], 1)
        twin.load_state_dict(weights)
        image = torch.randn(2, 1, *OTHER)
        with torch.no_grad():
            expected = twin.forward_features(image.expand(-1, 3, -1, -1))
            features = network.encode(image)[-1]
        if name == VIT:
            expected = expected[:, 1:].transpose(1, 2).unflatten(2, (6, 8))
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)

    def test_are_probed(self, name, tmp_path):
        from nnunet_transformers.pretraining.data.prepare import prepare
        from tests.conftest import write_dataset

        prepare(write_dataset(tmp_path / "raw", cases=4), tmp_path / "prepared", patch_size=(1, 64, 64))
        written(timm_network(name, (64, 64)), name, tmp_path / "encoder.pth", (64, 64))
        rows = [f"ball_{case},{case % 2},{('train', 'test')[case // 2]}" for case in range(4)]
        (tmp_path / "labels.csv").write_text("\n".join(["image,label,split", *rows]))
        arguments = [tmp_path / "encoder.pth", tmp_path / "prepared", tmp_path / "labels.csv"]
        result = CliRunner().invoke(cli.app, ["probe", "classify", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        assert "4 images, 2 labels" in result.output


def test_size_that_is_no_multiple_of_the_stride(tmp_path):
    """timm's ViT and its position embeddings ignore the remainder of an image after the last whole patch."""
    source = timm_network(VIT, (70, 104))
    checkpoint = load_encoder(written(source, VIT, tmp_path / "encoder.pth", (70, 104)))
    assert checkpoint.patch_size == (64, 96)
    assert checkpoint.weights["encoder.position.weight"].shape == (1, 4, 6, 192)


def refused(name, size=(224, 224)):
    with torch.device("meta"):
        weights = create_timm(name, 3, size).state_dict()
    return TimmCheckpoint(weights, name, size, 3)


@pytest.mark.parametrize(
    "name,message",
    [
        (
            "convnext_atto",
            r"encoder of no segmentation network here; take one of ResNet .*resnet50_unet\) and Vis.*setr_pup",
        ),
        ("deit_tiny_distilled_patch16_224", "is no ViT with one class token"),
        ("vit_base_patch16_clip_224", r"differs from the encoder of setr_pup, .*encoder.norm_pre"),
        ("eva02_tiny_patch14_224", "is no ViT of DINOv3"),
        ("vit_small_plus_patch16_dinov3", r"differs from the encoder of setr_pup_dinov3, .*encoder.blocks.0.mlp.fc1"),
        ("resnet50d", "ResNets whose stem is one convolution"),
    ],
)
def test_networks_of_timm_that_are_no_encoder_here(name, message):
    with pytest.raises(ValueError, match=message):
        EncoderCheckpoint.from_timm(refused(name))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "resnet50", "resnext50_32x4d"])
def test_networks_of_timm_that_are_one(name):
    checkpoint = EncoderCheckpoint.from_timm(refused(name))
    assert checkpoint.build_network().feature_channels[-1] == (192 if "deit" in name else 2048)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",  # LayerScale, patches of 14 for tokens of 16
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "vit_small_patch16_dinov3_qkvb",
        "vit_small_patch32_224",
        "deit3_small_patch16_224",  # no position embedding for the class token
    ],
)
def test_tokens_are_those_of_timm(name):
    """Of the same embedded patches; an image of 14 pixels a patch, enlarged to 16, has nearly the same."""
    vit = timm.create_model(name, num_classes=0, img_size=112 if "patch14" in name else 128).double().eval()
    with torch.no_grad():
        for parameter_name, parameter in vit.named_parameters():
            if not parameter_name.endswith(("q_bias", "v_bias")):
                parameter.add_(0.05 * torch.randn_like(parameter))
    size = [vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size[0]] * 2
    checkpoint = EncoderCheckpoint.from_timm(TimmCheckpoint(vit.state_dict(), name, size, 3))
    network = create_network(checkpoint.name, 3, 2, checkpoint.patch_size, **checkpoint.overrides).double().eval()
    assert load_encoder_weights(network, checkpoint).coverage(dict(network.named_parameters()), "encoder.") == 1
    y, x = (torch.linspace(0, 3, n, dtype=torch.float64) for n in size)
    image = (y[:, None] + torch.sin(x)).expand(1, 3, -1, -1)
    with torch.no_grad():
        tokens = vit.patch_embed(image)
        tokens = tokens.flatten(1, 2) if tokens.dim() == 4 else tokens
        expected = vit.forward_features(image)[:, vit.num_prefix_tokens :].transpose(1, 2)
        torch.testing.assert_close(network.encoder(tokens).flatten(2), expected, rtol=1e-5, atol=1e-5)
        enlarged = F.interpolate(image, size=checkpoint.patch_size, mode="bilinear")
        torch.testing.assert_close(network.stem(enlarged), tokens, rtol=0.1, atol=0.1)


def test_another_width_is_not_covered(tmp_path):
    checkpoint = load_encoder(written(timm_network(VIT), VIT, tmp_path / "encoder.pth"))
    network = create_network("setr_pup_small", 3, 2, SIZE)
    report = load_encoder_weights(network, checkpoint)
    assert report.coverage(dict(network.named_parameters()), "encoder.") == 0
    with pytest.raises(ValueError, match=r"are of SETRPUP \(setr_pup\), the network is ResNetUNet"):
        load_encoder_weights(create_network("resnet18_unet", 3, 2, SIZE), checkpoint)


def test_names_without_a_tag_mean_the_same_in_every_timm():
    page = (Path(__file__).parents[2] / "docs/weights.md").read_text()
    for name, tag in TAGS.items():
        assert f"{name}.{tag}" in timm.list_pretrained(f"{name}*")
        assert f"| {name} | {tag} |" in page
    assert tagged("resnet50.tv_in1k") == "resnet50.tv_in1k"
    assert tagged("resnet50") == "resnet50.a1_in1k"


def test_files_with_prefixes_and_of_other_networks(tmp_path):
    """timm loads whatever has the right names, and says nothing if that is nothing."""
    source = timm_network(RESNET)
    weights = {f"img_encoder_q.model.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "mgca.ckpt")
    network = create_timm(RESNET, 3, SIZE, str(tmp_path / "mgca.ckpt")).eval()
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(image), source(image))
    with pytest.raises(ValueError, match=r"mgca\.ckpt holds \d+ of the 150 tensors of timm's vit_tiny_patch16_224"):
        create_timm(VIT, 3, (64, 64), str(tmp_path / "mgca.ckpt"))


@pytest.mark.parametrize(
    "name,network",
    [
        (VIT, "setr_pup_tiny"),
        ("deit3_small_patch16_224", "setr_pup_small"),  # whose position embeddings have no row of the class token
        ("vit_small_patch14_reg4_dinov2", "setr_pup_small"),  # DINOv2's own files have one, timm's not
    ],
)
def test_position_embeddings_of_a_grid_that_is_no_square(name, network, tmp_path):
    """Of 3x5 patches, which with the class token are 16, those of a square."""
    vit = timm.create_model(name)
    patch, registers = vit.patch_embed.patch_size[0], 0 if vit.reg_token is None else vit.reg_token.shape[1]
    source = timm_network(name, (3 * patch, 5 * patch))
    weights = source.state_dict()
    position, token = weights["pos_embed"][:, -15:].unflatten(1, (3, 5)), weights["cls_token"]
    files = [weights]
    if registers:
        files.append({key.replace("reg_token", "register_tokens"): value for key, value in weights.items()})
        files[1]["pos_embed"] = torch.cat([torch.zeros_like(token), weights["pos_embed"]], 1)
    elif not source.no_embed_class:
        token = token + weights["pos_embed"][:, :1]
    for content in files:
        torch.save(content, tmp_path / "vit.pth")
        twin = create_network(network, 3, 2, (48, 80), num_registers=registers)
        report = find_weights(tmp_path / "vit.pth").weights.load_into(twin)
        assert "encoder.position.weight" in report.loaded
        assert torch.equal(twin.encoder.position.weight, position)
        torch.testing.assert_close(twin.encoder.cls_token.detach(), token)
        with pytest.raises(ValueError, match="position embeddings of 15 patches, which are no square"):
            find_weights(tmp_path / "vit.pth").weights.load_into(create_network(network, 3, 2, (64, 64)))


def test_position_embeddings_of_another_size_than_stated():
    weights = timm_network(VIT).state_dict()
    with pytest.raises(ValueError, match=r"embeddings of 25 tokens, images of 64x64 have 16 patches; state the image"):
        EncoderCheckpoint.from_timm(TimmCheckpoint(weights, VIT, (64, 64), 3))


def test_vits_with_other_tokens(tmp_path):
    network = create_network("setr_pup_tiny", 3, 2, SIZE)
    weights = timm_network("deit_tiny_distilled_patch16_224").state_dict()
    for token in ("dist_token", "reg_token"):
        torch.save({key.replace("dist_token", token): value for key, value in weights.items()}, tmp_path / "vit.pth")
        with pytest.raises(ValueError, match=f"no network here takes a ViT with {token}; get one without"):
            find_weights(tmp_path / "vit.pth").weights.load_into(network)


def test_vits_with_another_number_of_heads(tmp_path):
    """No shape tells it."""
    torch.save(timm_network(VIT, (64, 64)).state_dict(), tmp_path / "vit.pth")
    network = create_network("setr_pup_tiny", 3, 2, (64, 64), num_heads=12)
    with pytest.raises(ValueError, match=r"have 3 attention heads in encoder\.blocks.*has 12.*; set num_heads"):
        find_weights(tmp_path / "vit.pth").weights.load_into(network)


@pytest.mark.parametrize(
    "name,arguments",
    [("qt_unet_base", {}), ("unet2022_base", {}), ("unet2022_base", {"block": "swin"})],
)
def test_swin_with_another_number_of_heads(name, arguments, tmp_path):
    """Only the tables have other shapes; all else would be loaded."""
    network = create_network(name, 3, 2, (64, 64), num_heads=6, **{"embed_dim": 96, **arguments})
    with torch.device("meta"):
        shapes = {key: v.shape for key, v in timm.create_model("swin_tiny_patch4_window7_224").state_dict().items()}
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"have 3 attention heads in encoder.*has 6.*; set num_heads"):
        find_weights(tmp_path / "swin.pth").weights.load_into(network)


@pytest.mark.parametrize("prefix", ["encoder.", "model.encoder."])
def test_swin_under_the_names_of_qt_unets_pretraining(prefix, tmp_path):
    """As SimMIM's files have it, which are of none of the released QT-UNets."""
    name = "swin_tiny_patch4_window7_224"
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    path = tmp_path / "swin.pth"
    torch.save({"model": {f"{prefix}{key}": torch.zeros(shape) for key, shape in shapes.items()}}, path)
    assert find_weights(path).weights.origin == f"{path}, model, {prefix[:-1]}, weights of {name}"


def test_of_several_copies_the_report_names_the_one_that_is_loaded(tmp_path):
    """The others need not be finite."""
    weights = timm_network(RESNET).state_dict()
    damaged = {name: value * float("nan") for name, value in weights.items()}
    both = {f"online.{n}": v for n, v in weights.items()} | {f"momentum.{n}": v for n, v in damaged.items()}
    torch.save({"model_ema": damaged, "model": both}, tmp_path / "file.pth")
    network = create_network("resnet18_unet", 3, 2, (64, 64))
    report = find_weights(tmp_path / "file.pth").weights.load_into(network)
    assert torch.equal(network.stem.conv1.weight, weights["conv1.weight"])
    assert report.source == f"{tmp_path}/file.pth, model, online, weights of resnet18"
    assert report.unused == [f"momentum.{name}" for name in weights]
    assert f"\n  unused: {len(weights)} tensors in model_ema" in str(report)
    torch.save({"model": damaged, "model_ema": weights}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth, model, weights of resnet18 is damaged.* NaN or infinity"):
        find_weights(tmp_path / "file.pth").weights.load_into(network)
