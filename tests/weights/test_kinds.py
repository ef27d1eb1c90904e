"""Weights in the layouts of other people's files, loaded into networks of other patches, channels and classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from safetensors.torch import save_file
from torch import nn

from nnunet_transformers.architectures import create_network
from nnunet_transformers.weights import InitialWeights, find_weights
from nnunet_transformers.weights.adapters import first_layers
from nnunet_transformers.weights.kinds import label_names
from nnunet_transformers.weights.network_weights import NetworkWeights
from tests.released import released_keys, weights_from_names

PATCH = (32, 64, 64)
TABLE = (Path(__file__).parents[2] / "docs/weights.md").read_text()
# released file: prefix of its names, the entry that holds them, the network and the share of its encoder that loads
RELEASES = {
    "qt_unet_tiny_4ch_3cls_128": ("", "state_dict", "qt_unet_tiny", PATCH, 1.0),
    "qt_unet_a_tiny_4ch_3cls_128": ("module.", "model", "qt_unet_a_tiny", PATCH, 1.0),
    "qt_unet_2d_tiny_3ch_20cls": ("net.", "", "qt_unet_tiny", PATCH[1:], 1.0),
    "vt_unet_tiny_4ch_3cls_128": ("module.model.", "state_dict", "vt_unet_tiny", PATCH, 1.0),
    "unet2022_Synapse_320": ("model.", "state_dict", "unet2022_tiny", PATCH[1:], 1.0),
    "mit_seg7_48x192x192": ("", "model_state_dict", "mit_7", PATCH, 1.0),
    "mit_ssl7_MM": ("module.backbone.", "student", "mit_7", PATCH, 1.0),
    "mit_ssl7_MM-2d": ("module.backbone.", "student", "mit_7", PATCH[1:], 1.0),
    "mit_cls22": ("model.", "", "mit_22", PATCH, 1.0),
}


def layout(weights, prefix, entry):
    """Content of a file as its authors nest it."""
    named = {prefix + name: value for name, value in weights.items()}
    return {entry: named, "epoch": 7, "optimizer": {"state": {}}} if entry else named


def coverage(report, network):
    return report.coverage(dict(network.named_parameters()), f"{network.key_to_encoder}.")


def check_row(source, network, report):
    """The table in docs/weights.md has what was loaded: of the encoder, of the decoder, tensors resized."""
    parameters = dict(network.named_parameters())
    shares = [report.coverage(parameters, f"{part}.") for part in (network.key_to_encoder, "decoder")]
    name = f"{type(network).__name__} {len(getattr(network, 'patch_size', PATCH))}D"
    row = f"| {source} | {name} | {shares[0]:.0%} | {shares[1]:.0%} | {len(report.adapted)} |"
    assert row in TABLE, row


@pytest.mark.parametrize("release", RELEASES)
def test_releases(release, tmp_path):
    prefix, entry, name, patch_size, expected = RELEASES[release]
    families = {"qt": "qt_unet", "vt": "vt_unet"}
    family = name.partition("_")[0]
    names = released_keys(families.get(family, family))
    weights = weights_from_names(names[release.removesuffix("-2d")])
    torch.save(layout(weights, prefix, entry), tmp_path / "released.pth")
    network = create_network(name, 2, 5, patch_size)
    report = find_weights(tmp_path / "released.pth").weights.load_into(network, patch_size=patch_size)
    assert coverage(report, network) == expected
    assert not [n for n in report.fresh if n.startswith(("stem.", "encoder."))]
    check_row(f"`{release}`", network, report)


def test_encoder_of_qt_unets_pretraining(tmp_path):
    """The released encoders hold ``encoder.*`` beside heads of the pretraining tasks."""
    names = released_keys("qt_unet")["qt_unet_tiny_4ch_3cls_128"]
    weights = {n: v for n, v in weights_from_names(names).items() if n.startswith("encoder.")}
    heads = {"rotation_head.weight": torch.zeros(4, 8), "contrastive_head.weight": torch.zeros(8, 8)}
    torch.save({"state_dict": weights | heads, "epoch": 3}, tmp_path / "ssl.pt")
    network = create_network("qt_unet_tiny", 1, 2, PATCH)
    report = find_weights(tmp_path / "ssl.pt").weights.load_into(network)
    assert coverage(report, network) == 1
    assert all(name.startswith("decoder.") for name in report.fresh)
    assert report.adapted == {"stem.proj.weight": "channels 4 to 1"}
    check_row("QT-UNet's pretraining", network, report)


class TestNnssl:
    """Checkpoints as nnssl writes them: short class names, arguments that may be null, encoder and other decoder."""

    def content(self, network, name, patch_size):
        plan = {
            "architecture_plans": {"arch_class_name": name, "arch_kwargs": None, "arch_kwargs_requiring_import": None},
            "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": list(patch_size)}}},
            "recommended_downstream_patchsize": [160, 160, 160],
            "pretrain_num_input_channels": 1,
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": ["encoder.stem.convs.0.conv"],
            "key_to_lpe": None,
        }
        citations = [{"type": "Architecture", "name": name, "apa_citations": ["Isensee et al. 2024"]}]
        return plan, {"network_weights": network.state_dict(), "citations": citations, "epoch": 1000}

    def unet(self, network_class, channels, classes, kernels=((3, 3, 3),) * 3):
        blocks = {"n_blocks_per_stage": [1, 1, 1]} if network_class is ResidualEncoderUNet else {"n_conv_per_stage": 2}
        return network_class(
            channels, 3, [8, 16, 16], nn.Conv3d, list(kernels), [1, 2, 2], num_classes=classes,
            n_conv_per_stage_decoder=1, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU, **blocks,
        )  # fmt: skip

    @pytest.mark.parametrize("beside", [False, True])
    @pytest.mark.parametrize("network_class", [PlainConvUNet, ResidualEncoderUNet])
    def test_convolutional_encoders(self, network_class, beside, tmp_path):
        """The plan inside or beside; into a network of two channels, and with kernels of 1x3x3 in the first stage."""
        source = self.unet(network_class, 1, 1)
        plan, content = self.content(source, "ResEncL", (160, 160, 160))
        if beside:
            (tmp_path / "adaptation_plan.json").write_text(json.dumps(plan))
        else:
            content["nnssl_adaptation_plan"] = plan
        torch.save(content, tmp_path / "checkpoint_final.pth")
        network = self.unet(network_class, 2, 4, ((1, 3, 3), (3, 3, 3), (3, 3, 3)))
        found = find_weights(tmp_path).weights
        report = found.load_into(network)
        assert found.citations == ["Isensee et al. 2024"]
        check_row("nnssl", network, report)
        assert coverage(report, network) == 1
        state = network.state_dict()
        for name, value in source.state_dict().items():
            if name.startswith("encoder.stages.1."):
                assert torch.equal(state[name], value), name
        image = torch.randn(1, 1, 1, 16, 16).expand(1, 2, 8, 16, 16)  # constant along the depth, equal channels
        first, theirs = (n.get_submodule(n.keys_to_in_proj[0]) for n in (network, source))
        with torch.no_grad():
            own, expected = first(image), theirs(image[:, :1])
        torch.testing.assert_close(own[:, :, 1:-1], expected[:, :, 1:-1], rtol=1e-4, atol=1e-5)

    def test_primus(self, tmp_path):
        """Position embeddings of 160^3 voxels, 20^3 tokens; here 2x3x4 for 4x4x4."""

        def primus(channels, patch):
            return Primus(channels, 96, (8, 8, 8), 2, eva_depth=1, eva_numheads=2, input_shape=patch)

        source = primus(1, (16, 24, 32))
        plan, content = self.content(source, "PrimusM", (16, 24, 32))
        plan |= {"key_to_encoder": "eva", "key_to_stem": "down_projection", "key_to_lpe": "eva.pos_embed"}
        torch.save({**content, "nnssl_adaptation_plan": plan}, tmp_path / "primus.pth")
        network = primus(1, (32, 32, 32))
        report = find_weights(tmp_path / "primus.pth").weights.load_into(network, patch_size=(32, 32, 32))
        assert report.adapted["eva.pos_embed"] == "grid 2x3x4 to 4x4x4"
        assert coverage(report, network) == 1

    def test_heads_of_primus(self):
        """Those of nnU-Net's are the last layer of its decoder."""
        network, source = (Primus(1, 96, (8, 8, 8), 3, eva_depth=1, input_shape=(16, 16, 16)) for _ in range(2))
        weights = NetworkWeights(source.state_dict(), "a fold", labels=["background", "tumour", "cyst"])
        assert not weights.load_into(network, (16, 16, 16), weights.labels).fresh
        report = weights.load_into(network, (16, 16, 16), ["background", "left", "right"])
        assert report.fresh == {f"up_projection.decode.2.{n}": "heads of other labels" for n in ("weight", "bias")}


TIMM = [
    ("convnext_femto", "unet2022_tiny", PATCH, "", 0.4),
    ("swin_tiny_patch4_window7_224", "qt_unet_base", PATCH, "", 0.3),
    ("resnet18", "resnet18_unet", PATCH[1:], "img_encoder_q.model.", 1.0),
    ("vit_tiny_patch16_224", "setr_pup_tiny", PATCH[1:], "model.", 1.0),
    ("vit_small_patch14_dinov2", "setr_pup_small", PATCH[1:], "", 1.0),
    ("vit_small_patch16_dinov3", "setr_pup_dinov3_small", PATCH[1:], "", 1.0),
]


@pytest.mark.parametrize("name,network,patch_size,prefix,least", TIMM)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_timm_files(name, network, patch_size, prefix, least, ending, tmp_path):
    """With a classifier, and with the prefix of MGCA's files; heads and other parts of the file are left."""
    weights = {prefix + n: v.contiguous() for n, v in timm.create_model(name).state_dict().items()}
    path = tmp_path / f"file{ending}"
    if ending == ".pth":
        torch.save({"state_dict": weights | {"text_encoder.weight": torch.zeros(2)}}, path)
    else:
        save_file(weights, path)
    network = create_network(network, 1, 2, patch_size)
    report = find_weights(path).weights.load_into(network)
    assert coverage(report, network) >= least
    check_row(f"timm's {name}", network, report)


@pytest.mark.parametrize("patch_size", [(56, 56), (16, 56, 56)], ids=["2d", "3d"])
def test_qt_unet_base_starts_as_swin(patch_size, tmp_path):
    """Thesis, section 3.3.8: through the ordinary way its feature maps are Swin's, also of what 3D repeats."""
    swin = timm.create_model("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        for parameter in swin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        torch.save(swin.state_dict(), tmp_path / "swin.pth")
        swin.set_input_size((56, 56), window_size=(7, 7))
        image = torch.randn(1, 3, 56, 56)
        embedded = swin.patch_embed(image)
        deepest = swin.layers[1](swin.layers[0](embedded))
    # the norm of the deepest map has as many channels as Swin's only with as many stages
    expected = [embedded, F.layer_norm(deepest, (192,))]
    windows = [(4, 7, 7), (2, 7, 7)] if len(patch_size) == 3 else 7
    arguments = {"num_stages": 2, "depths": (2, 2), "norm_placement": "pre", "window_sizes": windows}
    network = create_network("qt_unet_base", 3, 2, patch_size, pretrained=str(tmp_path / "swin.pth"), **arguments)
    if len(patch_size) == 3:
        image = image[:, :, None].expand(-1, -1, 16, -1, -1)
    with torch.no_grad():
        maps = network.eval().encode(image)
    for own, theirs in zip(maps, expected, strict=True):
        theirs = theirs.permute(0, 3, 1, 2)
        theirs = theirs if own.dim() == 4 else theirs[:, :, None]
        torch.testing.assert_close(own, theirs.expand_as(own), rtol=1e-4, atol=1e-4)


def test_dinos_own_files(tmp_path):
    """Their names for registers, LayerScale and the attention's zero biases, and what only pretraining needs."""
    vit = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=56)
    weights = {n.replace("reg_token", "register_tokens"): v for n, v in vit.state_dict().items()}
    position = torch.cat([torch.ones(1, 1, 384), weights["pos_embed"]], 1)  # of the class token too
    torch.save(weights | {"pos_embed": position, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2.pth")
    network = create_network("setr_pup_small", 1, 2, (64, 64), num_registers=4)
    report = find_weights(tmp_path / "dinov2.pth").weights.load_into(network)
    assert coverage(report, network) == 1 and report.unused == ["mask_token"]
    torch.testing.assert_close(network.encoder.cls_token, vit.cls_token + 1)
    behind = {f"backbone.{name}": value for name, value in (weights | {"pos_embed": position}).items()}
    torch.save({"teacher": behind}, tmp_path / "behind.pth")
    again = create_network("setr_pup_small", 1, 2, (64, 64), num_registers=4)
    assert coverage(find_weights(tmp_path / "behind.pth").weights.load_into(again), again) == 1

    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0)
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    weights = {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, 384)}
    for name, value in vit.state_dict().items():
        for timms, theirs in renamed.items():
            name = name.replace(timms, theirs)
        weights[name] = value
        if name.endswith("qkv.weight"):
            weights[name.replace("weight", "bias")] = torch.zeros(1152)
            weights[name.replace("weight", "bias_mask")] = torch.ones(1152)
    torch.save(weights, tmp_path / "dinov3.pth")
    network = create_network("setr_pup_dinov3_small", 3, 2, (64, 64))
    report = find_weights(tmp_path / "dinov3.pth").weights.load_into(network)
    assert coverage(report, network) == 1 and not report.unused
    torch.testing.assert_close(network.encoder.blocks[3].gamma_2, vit.blocks[3].gamma_2)
    torch.save({f"teacher.backbone.{name}": value for name, value in weights.items()}, tmp_path / "behind.pth")
    again = create_network("setr_pup_dinov3_small", 3, 2, (64, 64))
    assert coverage(find_weights(tmp_path / "behind.pth").weights.load_into(again), again) == 1


def test_links_keep_their_names(tmp_path):
    """As in a cache of Hugging Face's, whose files are called by their hashes."""
    network = create_network("resnet18_unet", 1, 2, (64, 64))
    (tmp_path / "blobs").mkdir()
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "blobs" / "0123456789"
    )
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0123456789")
    found = find_weights(tmp_path / "model.safetensors")
    assert found.source == str(tmp_path / "model.safetensors")
    assert not found.weights.load_into(create_network("resnet18_unet", 1, 2, (64, 64))).fresh


@pytest.mark.parametrize("name", ["qt_unet_tiny", "unet2022_tiny"])
def test_the_branch_at_full_resolution_takes_other_channels_and_labels(name, tmp_path):
    """Its first layer is fitted as the stem's is, and of all of it only the classifier depends on the labels."""
    given = {"num_stages": 2, "full_resolution_channels": 4}
    network = create_network(name, 1, 2, (32, 32), **given)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    other = create_network(name, 2, 3, (32, 32), **given)
    report = find_weights(tmp_path / "weights.pth").weights.load_into(other)
    assert {n for n in report.fresh if "full_resolution" in n} == set()
    assert {n for n in report.fresh if n.startswith("decoder.")} == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.bias",
    }
    before, after = network.decoder.full_resolution.image.conv.weight, other.decoder.full_resolution.image.conv.weight
    torch.testing.assert_close(after.sum(1, keepdim=True), before)


def test_heads_are_in_the_order_of_their_numbers():
    """Regions are in the order in which they are listed."""
    assert label_names({"labels": {"background": 0, "liver": 2, "tumour": 1, "ignore": 3}}) == [
        "background",
        "tumour",
        "liver",
    ]
    assert label_names({"labels": {"background": 0, "whole": [1, 2], "core": 2}}) == ["background", "whole", "core"]


def test_nothing_that_fits(tmp_path):
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"nothing of .*file\.pth fits this QTUNet, no name is the same"):
        create_network("qt_unet_tiny", 1, 2, PATCH, pretrained=str(tmp_path / "file.pth"))
    torch.save({"stem.proj.weight": torch.ones(48, 1, 4, 4, 4)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="the weights cover 0% of the encoder, less than the 50% asked for"):
        create_network("qt_unet_tiny", 1, 2, PATCH, pretrained=str(tmp_path / "file.pth"))
    torch.save({"state_dict": {"module.swinViT.layers1.0.norm.weight": torch.ones(3)}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"nothing of .*, SwinUNETR in state_dict fits this QTUNet"):
        create_network("qt_unet_tiny", 1, 2, PATCH, pretrained=str(tmp_path / "file.pth"))


def test_create_network_from_weights(tmp_path):
    source = create_network("qt_unet_tiny", 1, 2, PATCH)
    torch.save({"model": source.state_dict()}, tmp_path / "file.pth")
    network = create_network("qt_unet_tiny", 1, 2, PATCH, pretrained=str(tmp_path / "file.pth"))
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no weights; it would have one of checkpoint_final\.pth"):
        find_weights(tmp_path)
    for fold in (0, 1):
        (tmp_path / f"fold_{fold}").mkdir()
        torch.save({"a.weight": torch.ones(3)}, tmp_path / f"fold_{fold}/checkpoint_final.pth")
    with pytest.raises(ValueError, match=r"several weights; give one of fold_0/checkpoint_final\.pth, fold_1/"):
        find_weights(tmp_path)
    assert find_weights(tmp_path / "fold_1").source.endswith("fold_1/checkpoint_final.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth holds no weights: it has epoch"):
        find_weights(tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"timm has no weights 'resnet50\.nobodys'; it has resnet50"):
        find_weights("timm:resnet50.nobodys")


def test_hub(hub, tmp_path):
    """A repository as nnssl's, and its commit in what a plan keeps; offline the second time."""
    source = create_network("qt_unet_tiny", 1, 2, PATCH)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
    commit = hub.add("owner/name", {"weights.pth": (tmp_path / "weights.pth").read_bytes(), "README.md": b""})
    found = find_weights("hf://owner/name")
    assert found.source == f"hf://owner/name/weights.pth@{commit}"
    hub.requests.clear()
    again = InitialWeights({"checkpoint": found.source, "sha256": found.sha256})
    assert not hub.requests
    network = create_network("qt_unet_tiny", 1, 2, PATCH)
    assert not again.load_into(network).fresh
    with pytest.raises(ValueError, match="is another file than when the plan was written"):
        InitialWeights({"checkpoint": found.source, "sha256": "0" * 64})


@pytest.mark.parametrize("order", [("projector", "backbone"), ("backbone", "projector")])
def test_of_several_state_dicts_the_one_that_fits(order, tmp_path):
    source = create_network("qt_unet_tiny", 1, 2, PATCH)
    found = {"backbone": source.state_dict(), "projector": {"0.weight": torch.ones(3), "0.bias": torch.ones(3)}}
    torch.save({name: found[name] for name in order}, tmp_path / "file.pth")
    network = create_network("qt_unet_tiny", 1, 2, PATCH)
    report = find_weights(tmp_path / "file.pth").weights.load_into(network)
    assert not report.fresh and report.source.endswith("file.pth, backbone")
    # which alone has to be finite: others hold queues and best scores
    found["projector"]["0.bias"][1] = float("-inf")
    torch.save({name: found[name] for name in order}, tmp_path / "file.pth")
    assert not find_weights(tmp_path / "file.pth").weights.load_into(network).fresh
    found["backbone"] = {name: value * float("nan") for name, value in found["backbone"].items()}
    torch.save({name: found[name] for name in order}, tmp_path / "damaged.pth")
    with pytest.raises(ValueError, match="NaN or infinity"):
        find_weights(tmp_path / "damaged.pth").weights.load_into(network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in source.state_dict().items())


def test_classifiers_of_timm_are_unused(tmp_path):
    network = create_network("resnet50_unet", 3, 2, (64, 64))
    torch.save(timm.create_model("resnet50", num_classes=5).state_dict(), tmp_path / "resnet.pth")
    report = find_weights(tmp_path / "resnet.pth").weights.load_into(network)
    assert {"fc.weight", "fc.bias"} <= set(report.unused)


def test_folder_of_a_run_of_unimiss(tmp_path):
    for name in ("encoder_3d.pth", "encoder_2d.pth"):
        torch.save({"a.weight": torch.ones(3)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"several weights; give one of encoder_3d\.pth, encoder_2d\.pth"):
        find_weights(tmp_path)
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "encoder.pth")
    assert find_weights(tmp_path).source.endswith("encoder.pth")
    for name in ("encoder.pth", "encoder_2d.pth"):
        (tmp_path / name).unlink()
    assert find_weights(tmp_path).source.endswith("encoder_3d.pth")


@pytest.mark.parametrize(("before", "after"), [((14, 14), (16, 16)), ((16, 16), (14, 14)), ((4, 4, 4), (3, 2, 1))])
def test_first_kernels_keep_the_response_to_a_constant_image(before, after):
    value, tensor = (torch.randn(5, 2, *size, generator=torch.Generator().manual_seed(0)) for size in (before, after))
    adapted, _ = first_layers(["proj"])("proj", value, tensor)
    assert adapted.shape == tensor.shape
    torch.testing.assert_close(adapted.flatten(2).sum(2), value.flatten(2).sum(2), rtol=1e-4, atol=1e-4)
