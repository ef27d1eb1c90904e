"""SwinUNETR and UNETR against MONAI's own; without MONAI a line names the extra, and nothing else breaks."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers.architectures import _monai, _registry, create_network, get_network, list_networks
from nnunet_transformers.architectures.unetr import DECODER
from nnunet_transformers.weights import find_weights

UNETR_NAMES = (
    (r"^vit\.patch_embedding\.patch_embeddings\.", "stem.proj."),
    (r"^vit\.patch_embedding\.position_embeddings$", "encoder.position.weight"),
    (r"^vit\.", "encoder."),
    (rf"^({'|'.join(DECODER)})\.", r"decoder.\1."),
    (r"^out\.", "decoder.seg_layers.0."),
)


def unetr_from_monai(state_dict):
    """Its weights by our names, without a norm that it does not use."""
    renamed = {}
    for name, value in state_dict.items():
        for pattern, replacement in UNETR_NAMES:
            name = re.sub(pattern, replacement, name)
        if ".norm_cross_attn." not in name:
            renamed[name] = value
    return renamed


def release(network, folder):
    """A file of its weights, as a distributed training stores them."""
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, folder / "release.pth")
    return folder / "release.pth"


@pytest.mark.parametrize(
    "name,patch_size",
    [
        ("swin_unetr", (64, 32)),
        ("swin_unetr_v2", (64, 32)),
        ("swin_unetr_v2", (32, 32, 64)),
        ("unetr", (64, 32)),
        ("unetr", (32, 16, 32)),
    ],
)
def test_outputs_equal_monais(name, patch_size, tmp_path):
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    torch.manual_seed(0)
    family = name.removesuffix("_v2")
    if family == "swin_unetr":
        options = {"feature_size": 12, "spatial_dims": len(patch_size), "use_v2": name.endswith("_v2")}
        theirs = nets.SwinUNETR(2, 3, dropout_path_rate=0.1, **options)
        network = create_network(name, 2, 3, patch_size, embed_dim=12, drop_path_rate=0.1)
        rates = [[getattr(m, "drop_prob", None) for m in n.modules()] for n in (theirs.swinViT, network.encoder)]
        assert [r for r in rates[0] if r is not None] == [r for r in rates[1] if r is not None]
        report = find_weights(release(theirs, tmp_path)).weights.load_into(network)
        assert not report.fresh and not report.adapted and not report.unused
    else:
        options = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 96, "num_heads": 2}
        theirs = nets.UNETR(2, 3, patch_size, spatial_dims=len(patch_size), **options)
        network = create_network(name, 2, 3, patch_size, embed_dim=24, num_heads=2, decoder_dim=4)
        network.load_state_dict(unetr_from_monai(theirs.state_dict()))
    image = torch.randn(2, 2, *patch_size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.double().eval()(image), theirs.double().eval()(image), rtol=1e-9, atol=1e-9)


# names in MONAI's files of pretrained encoders, from those of its SwinUNETR: model_swinvit.pt, which has no name for
# the encoder and calls linear layers fc; a run of that pretraining, in one process, by its first and by its later name;
# ssl_pretrained_weights.pth, with each stage in a list of a list
PRETRAINED = {
    "model_swinvit": ("state_dict", lambda name: "module." + re.sub(r"\.linear(\d)\.", r".fc\1.", name), {}),
    "swin_vit": ("state_dict", lambda name: f"swin_vit.{name}", {"rotation_head.weight": (4, 8), "conv.0.bias": (8,)}),
    "swinViT": ("state_dict", lambda name: f"module.swinViT.{name}", {"module.contrastive_head.bias": (8,)}),
    "ssl_pretrained_weights": (
        "model",
        lambda name: "encoder." + re.sub(r"^(layers\d\.0\.)", r"\g<1>0.", name),
        {"encoder.mask_token": (1, 1, 12), "encoder.norm.weight": (192,), "out.conv.conv.bias": (2,)},
    ),
}


def pretrained(layout, encoder, folder):
    """A file of the weights of MONAI's encoder, by its names, with what only pretraining needs."""
    entry, renamed, others = PRETRAINED[layout]
    weights = {renamed(name): value for name, value in encoder.items()}
    torch.save(
        {"epoch": 3, entry: weights | {name: torch.ones(size) for name, size in others.items()}}, folder / "file.pt"
    )
    return folder / "file.pt"


@pytest.mark.parametrize("layout", PRETRAINED)
@pytest.mark.parametrize("name", ["swin_unetr", "swin_unetr_v2"])
def test_pretrained_encoders(layout, name, tmp_path):
    """Feature maps are those of MONAI's encoder, and the decoder keeps its initialisation."""
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    theirs = nets.SwinUNETR(2, 2, feature_size=12, spatial_dims=2, use_v2=name.endswith("_v2"))
    network = create_network(name, 2, 2, (64, 32), embed_dim=12)
    found = find_weights(pretrained(layout, theirs.swinViT.state_dict(), tmp_path)).weights
    report = found.load_into(network)
    assert not report.adapted and len(report.unused) == len(PRETRAINED[layout][2])
    assert report.fresh and all(name.startswith("decoder.") for name in report.fresh)
    image = torch.randn(2, 2, 64, 32)
    with torch.no_grad():
        for own, other in zip(network.eval().encode(image), theirs.swinViT.eval()(image), strict=True):
            torch.testing.assert_close(own, other)
    with pytest.raises(ValueError, match=r"nothing of .*file\.pt, SwinUNETR in .* fits this QTUNet"):
        found.load_into(create_network("qt_unet_tiny", 1, 2, (32, 32)))


@pytest.mark.parametrize("layout", ["model_swinvit", "ssl_pretrained_weights"])
def test_monai_reads_the_files_of_these_tests(layout, tmp_path):
    """So the layouts are those of MONAI's releases, as far as its own functions for them tell."""
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    from monai.networks.nets.swin_unetr import filter_swinunetr
    from monai.networks.utils import copy_model_state

    source, target = (nets.SwinUNETR(1, 2, feature_size=12) for _ in range(2))
    content = torch.load(pretrained(layout, source.swinViT.state_dict(), tmp_path), weights_only=True)
    if layout == "model_swinvit":
        target.load_from(content)
    else:
        copy_model_state(target, content["model"], filter_func=filter_swinunetr)
    loaded = target.swinViT.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in source.swinViT.state_dict().items())


@pytest.mark.parametrize("layout", PRETRAINED)
def test_names_of_pretrained_encoders(layout, tmp_path):
    """Without MONAI, of which the names are enough."""
    names = ["patch_embed.proj.weight", "layers1.0.blocks.0.mlp.linear1.bias", "layers4.0.downsample.norm.weight"]
    encoder = {name: torch.ones(1) for name in (*names, "layers1.0.blocks.0.attn.relative_position_index")}
    weights = find_weights(pretrained(layout, encoder, tmp_path)).weights.weights
    ours = {"stem.proj.weight", *(f"encoder.{name}" for name in names[1:])}
    assert ours <= weights.keys() and len(weights) == len(ours) + len(PRETRAINED[layout][2])


def test_our_own_names_are_not_monais(tmp_path):
    """Whatever state dict of a file fits is then taken, which MONAI's files do not leave open."""
    ours = {"stem.proj.weight": torch.ones(1), "encoder.layers1.0.blocks.0.norm1.weight": torch.ones(1)}
    torch.save({"ema": ours}, tmp_path / "file.pt")
    assert find_weights(tmp_path / "file.pt").weights.origin.endswith("file.pt, ema")


@pytest.mark.parametrize(
    "names",
    [
        ["swin_vit.embeddings.norm.weight", "head.weight"],
        ["swinViT.weight", "head.weight"],
        ["patch_embed.proj.weight", "layers.1.blocks.0.norm1.weight"],
        ["patch_embed.norm.weight", "layers1.0.weight"],
    ],
)
def test_names_of_others_are_not_monais(names, tmp_path):
    """Of Hugging Face, of one's own network, of timm, and of a CNN."""
    torch.save({"state_dict": {name: torch.ones(1) for name in names}}, tmp_path / "file.pt")
    assert find_weights(tmp_path / "file.pt").weights.weights.keys() == set(names)


def test_of_student_and_teacher_the_first_is_loaded(tmp_path):
    names = ["patch_embed.proj.weight", "layers1.0.blocks.0.norm1.weight"]
    both = {f"{one}.backbone.{name}": torch.tensor([value]) for value, one in enumerate("st") for name in names}
    torch.save({"state_dict": both}, tmp_path / "file.pt")
    weights = find_weights(tmp_path / "file.pt").weights.weights
    assert weights == {
        "stem.proj.weight": 0,
        "encoder.layers1.0.blocks.0.norm1.weight": 0,
        **{f"t.backbone.{name}": 1 for name in names},
    }


def test_constants_follow_the_network():
    pytest.importorskip("monai")
    network = create_network("swin_unetr", 1, 2, (32, 64), embed_dim=12)
    indices = [m.relative_position_index for n, m in network.named_modules() if n.endswith(".attn")]
    assert len(indices) == 8
    network.half().to("meta")
    moved = [m.relative_position_index for n, m in network.named_modules() if n.endswith(".attn")]
    assert {(i.dtype, i.device.type) for i in moved} == {(torch.int64, "meta")}
    assert not list(network.named_buffers())


def test_without_monai(monkeypatch):
    """Also where it is installed. Networks are listed, and a line names the extra."""
    names = ["swin_unetr", "swin_unetr_v2", "unetr"]
    assert [name for name in list_networks(2) if get_network(name).network_class.extra] == names
    for module in (_monai, _registry):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name in names:
        with pytest.raises(ModuleNotFoundError, match=r"of MONAI, which is not .* 'nnunet-transformers\[monai\]'"):
            create_network(name, 1, 2, (32, 32, 32))
    result = CliRunner().invoke(cli.app, ["models", "--name", "unetr", "--patch-size", "32,32,32"])
    assert result.exit_code == 0, result.output
    assert all(f"{name} (extra monai)" in result.output for name in names)
    last = result.output.splitlines()[-1]
    assert last == "to install what a network needs: pip install 'nnunet-transformers[monai]'"
