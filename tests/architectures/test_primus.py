"""Primus against dynamic-network-architectures' own, and the weights of nnU-Net's trainers in ours."""

from __future__ import annotations

import math

import pytest
import torch
from dynamic_network_architectures.architectures import primus as stock

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.primus import rotary_embedding
from nnunet_transformers.weights import PrimusCheckpoint, encoder_weights
from nnunet_transformers.weights.network_weights import NetworkWeights
from nnunet_transformers.weights.primus import STOCK

PATCH = (16, 8, 24)
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
WIDTHS = (8, 8, 16, 16)
OWN = {"primus_v3_s": {**SMALL, "widths": WIDTHS}, "primus_v2_s": SMALL}
CLASSES = {"primus_v3_s": stock.PrimusV3, "primus_v2_s": stock.PrimusV2}


def stock_primus(name, patch_size=PATCH, channels=1):
    """A small Primus of nnU-Net's trainers, as if trained."""
    torch.manual_seed(0)
    network = CLASSES[name](
        input_channels=channels,
        num_classes=3,
        embed_dim=SMALL["embed_dim"],
        eva_depth=SMALL["depth"],
        eva_numheads=SMALL["num_heads"],
        patch_embed_size=(8, 8, 8),
        input_shape=patch_size,
        **STOCK,
        **({"ch_per_level": WIDTHS} if name == "primus_v3_s" else {}),
    )
    with torch.no_grad():  # LayerScale and the projections to tokens start near zero
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_nnunets_trainers_give_its_outputs(name, prefix):
    source, network = stock_primus(name), create_network(name, 1, 3, PATCH, **OWN[name]).eval()
    weights = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    report = NetworkWeights(weights, "stock", patch_size=PATCH).load_into(network, PATCH)
    assert not report.fresh
    image = torch.randn(2, 1, *PATCH)
    with torch.no_grad():
        assert torch.equal(network(image), source(image))


@pytest.mark.parametrize("name", CLASSES)
def test_published_sizes(name):
    """As many parameters as the network of nnU-Net's trainer."""
    sizes = {"s": (396, 12, 6), "m": (864, 16, 12), "l": (1056, 24, 16)}
    with without_data():
        for size, own in sizes.items():
            theirs = getattr(stock, CLASSES[name].__name__ + size.upper())(1, 2, (8, 8, 8), (16, 16, 16), **STOCK)
            network = create_network(f"{name[:-1]}{size}", 1, 2, (16, 16, 16))
            assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in theirs.parameters())
            assert (network.feature_channels[0], network.depth) == own[:2]
            assert network.encoder.blocks[0].attn.num_heads == own[2]
            rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.encoder.blocks]
            assert rates == pytest.approx([0.2 * i / (own[1] - 1) for i in range(own[1])])


def test_pretrained_encoder_of_another_patch():
    source = stock_primus("primus_v3_s")
    checkpoint = PrimusCheckpoint(encoder_weights(source), "primus_v3_s", PATCH, 1)
    network = create_network("primus_v3_s", 2, 3, (16, 16, 24), **OWN["primus_v3_s"])
    report = checkpoint.load_into(network)
    stem = "stem.stem.blocks.0."
    assert report.adapted == {
        **dict.fromkeys((f"{stem}conv1.conv.weight", f"{stem}skip.0.conv.weight"), "channels 1 to 2"),
        "encoder.position.weight": "grid 2x1x3 to 2x2x3",
    }
    assert all(name.startswith("decoder.") for name in report.fresh)
    assert not report.unused
    with without_data():
        others = [
            create_network(name, 1, 3, PATCH, **own) for name, own in (("primus_v2_s", SMALL), ("primus_v3_s", {}))
        ]
    for other in others:
        with pytest.raises(ValueError, match="the weights are of primus_v3_s, the network has"):
            checkpoint.load_into(other)


def test_rotary_embedding():
    """One angle for each axis and frequency, by the formula; the size is that of three axes with any timm."""
    grid, dim = (2, 3, 4), 8
    expected = []
    for position in torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)):
        angles = [x * 10000.0 ** (-band / (dim // 4)) for x in position.tolist() for band in range(dim // 4)]
        expected.append([f(angle) for f in (math.sin, math.cos) for angle in angles for _ in range(2)])
    found = rotary_embedding(grid, dim, torch.device("cpu"))
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert found.shape == (24, 3 * dim)


def test_arguments_that_contradict_each_other():
    for arguments, message in (
        ({"embed_dim": 100}, r"embed_dim must be a multiple of 6 \* num_heads"),
        ({"widths": (8, 8)}, "widths must have 4 entries"),
        ({"activation": "tanh"}, "activation be one of relu, leaky_relu"),
    ):
        with pytest.raises(ValueError, match=message):
            create_network("primus_v3_s", 1, 2, (16, 16, 16), **arguments)
