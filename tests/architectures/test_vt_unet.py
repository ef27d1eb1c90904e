"""VT-UNet against its release and the thesis that has it as baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.vt_unet import CROSS_SHARE, FourierPositions
from nnunet_transformers.weights import from_reference, identify

from ..counting import published_multiply_adds
from ..released import DATA, golden_input, released_keys, weights_from_names

SMALL = {"num_stages": 2, "depths": (2, 1), "drop_path_rate": 0.0}


@pytest.mark.parametrize(
    "name,millions,giga",
    [
        ("vt_unet_tiny", 5.39, 51.97),
        ("vt_unet_small", 11.79, 100.84),
        ("vt_unet_base", 20.76, 164.96),
        ("vt_unet_a_tiny", 6.2, 35.0),
        ("vt_unet_a_small", 13.5, 67.0),
        ("vt_unet_a_base", 23.9, 108.7),
    ],
)
def test_published_size(name, millions, giga):
    """Thesis, tables 4.1 and 4.10."""
    with torch.device("meta"):
        network = create_network(name, 4, 3, (128, 128, 128))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert published_multiply_adds(network, 4, (128, 128, 128)) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.fixture(scope="module")
def golden():
    """The release's names, shapes and output (every fourth voxel) on weights drawn from their names."""
    archive = np.load(DATA / "vt_unet_tiny_128x32x32.npz")
    return json.loads(str(archive["shapes"])), torch.from_numpy(archive["output"])


class TestReleasedWeights:
    def output(self, shapes, **overrides):
        network = create_network("vt_unet_tiny", 1, 3, (128, 32, 32), **overrides).eval()
        network.load_state_dict(from_reference("vt_unet", weights_from_names(shapes)), strict=True)
        with torch.no_grad():
            return network(golden_input((1, 1, 128, 32, 32)))[..., ::4, ::4, ::4]

    def test_released_output(self, golden):
        shapes, expected = golden
        output = self.output(shapes, reference_compat=True)
        assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (self.output(shapes) - expected).abs().max() > 1e-2 * expected.abs().max()

    def test_every_released_name(self):
        shapes = released_keys("vt_unet")["vt_unet_tiny_4ch_3cls_128"]
        weights = from_reference("vt_unet", {f"module.{key}": torch.zeros(shape) for key, shape in shapes})
        network = create_network("vt_unet_tiny", 4, 3, (128, 128, 128), reference_compat=True)
        network.load_state_dict(weights, strict=True)
        found = identify("vt_unet", weights)
        assert (found.name, found.input_channels, found.num_classes, found.ndim) == ("vt_unet_tiny", 4, 3, 3)

    def test_weights_of_something_else(self):
        qt_unet = {key: torch.zeros(shape) for key, shape in released_keys("qt_unet")["qt_unet_tiny_4ch_3cls_128"]}
        for weights in (qt_unet, {"conv1.weight": torch.zeros(1)}):
            with pytest.raises(ValueError, match="not the weights of a VT-UNet"):
                from_reference("vt_unet", weights)


@pytest.mark.parametrize("reference_compat", [False, True])
def test_decoder_block(reference_compat):
    """A decoder block equals the paper's formula (section 2.2), written out for a grid of one window."""
    torch.manual_seed(0)
    options = {"embed_dim": 12, "window_sizes": 4, "reference_compat": reference_compat}
    network = create_network("vt_unet_tiny", 1, 2, (16, 16), **SMALL, **options).double().eval()
    block = network.decoder.levels[0].blocks[0]
    x, k, v = torch.randn(2, 16, 12).double(), *torch.randn(2, 2, 1, 3, 16, 4).double()
    bias = block.attn.bias()

    def attention(q, k, v):
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 2 + bias, dim=-1) @ v  # 2 is the root of the heads' width
        return block.attn.proj(mixed.transpose(1, 2).flatten(2))

    def feed_forward(x):
        return x + block.mlp(block.norm2(x))

    q, own_k, own_v = block.attn.qkv(block.norm1(x)).view(2, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
    own = feed_forward(x + attention(q, own_k, own_v))
    cross = feed_forward(x + attention(q / 2 if reference_compat else q, k[:, 0], v[:, 0]))
    positions = block.mlp(block.norm2(block.positions.encoding))
    out, _ = block(x, (k, v))
    torch.testing.assert_close(out, (1 - CROSS_SHARE) * own + CROSS_SHARE * cross + positions)


def test_each_parity_gets_the_encoders_windows():
    """Decoder block i attends to the keys of encoder block i, which has the same windows."""
    network = create_network("vt_unet_tiny", 1, 2, (32, 32), window_sizes=4, **SMALL).eval()
    seen, made = [], []
    for block in network.decoder.levels[0].blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for block in network.encoder.stages[0].blocks:
        block.register_forward_hook(lambda *hooked: made.append(hooked[-1][1]))
    network(torch.randn(1, 1, 32, 32))
    assert len(seen) == len(made) == 2
    for (k, v), (own_k, own_v) in zip(seen, made, strict=True):
        assert k is own_k and v is own_v
    partitions = [b.attn.partition for b in network.encoder.stages[0].blocks]
    assert partitions == [b.attn.partition for b in network.decoder.levels[0].blocks]
    assert partitions[0].shift != partitions[1].shift


def test_fourier_positions():
    encoding = FourierPositions((3, 5), 8).encoding.view(3, 5, 8).double()
    row, column = 2, 4
    frequencies = [1.0, 10000 ** (-2 / 4)]
    expected = [f(n * w) for n in (row, column) for f in (np.sin, np.cos) for w in frequencies]
    np.testing.assert_allclose(encoding[row, column], expected, rtol=1e-6)
    assert FourierPositions((2, 2, 2), 8).encoding.shape == (8, 8)
    assert FourierPositions((2, 2), 8).to(torch.float64).encoding.dtype == torch.float64
