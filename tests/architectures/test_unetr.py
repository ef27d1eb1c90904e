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
