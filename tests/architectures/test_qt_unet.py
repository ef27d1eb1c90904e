"""QT-UNet against its thesis and its release."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.weights import from_reference, identify

from ..released import DATA, golden_input, released_keys, weights_from_names


def parameters(*args, **kwargs):
    with torch.device("meta"):
        return sum(p.numel() for p in create_network(*args, **kwargs).parameters())


@pytest.mark.parametrize("size,exact", [("tiny", 6_647_118), ("small", 14_509_518), ("base", 25_507_662)])
def test_published_parameters(size, exact):
    assert parameters(f"qt_unet_{size}", 4, 3, (128, 128, 128)) == exact


@pytest.mark.parametrize(
    "name,patch_size,channels,classes,overrides,millions",
    [
        ("qt_unet_tiny", (96, 96, 96), 1, 14, {}, 6.64),
        ("qt_unet_small", (96, 96, 96), 1, 14, {}, 14.50),
        ("qt_unet_base", (96, 96, 96), 1, 14, {}, 25.49),
        ("qt_unet_a_tiny", (128, 128, 128), 4, 3, {}, 5.87),
        ("qt_unet_a_small", (128, 128, 128), 4, 3, {}, 12.76),
        ("qt_unet_a_base", (128, 128, 128), 4, 3, {}, 22.41),
        ("qt_unet_tiny", (1024, 1024), 3, 20, {}, 5.45),
        ("qt_unet_small", (1024, 1024), 3, 20, {}, 12.20),
        ("qt_unet_base", (1024, 1024), 3, 20, {}, 21.64),
        ("qt_unet_tiny", (1024, 1024), 3, 20, {"cross_attention": False}, 5.05),
        ("qt_unet_small", (1024, 1024), 3, 20, {"cross_attention": False}, 11.31),
        ("qt_unet_base", (1024, 1024), 3, 20, {"cross_attention": False}, 20.08),
    ],
)
def test_published_parameters_in_millions(name, patch_size, channels, classes, overrides, millions):
    assert parameters(name, channels, classes, patch_size, **overrides) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    "name,patch_size,channels,classes,overrides,giga",
    [
        ("qt_unet_tiny", (96, 96, 96), 1, 14, {}, 12.65),
        ("qt_unet_small", (96, 96, 96), 1, 14, {}, 23.64),
        ("qt_unet_base", (96, 96, 96), 1, 14, {}, 37.74),
        ("qt_unet_tiny", (96, 96, 96), 1, 14, {"window_sizes": 6}, 8.71),
        ("qt_unet_tiny", (1024, 1024), 3, 20, {}, 38.78),
    ],
)
def test_published_multiply_adds(name, patch_size, channels, classes, overrides, giga):
    """As fvcore counts them, norms included, with attention as matrix products, since it misses fused kernels."""
    fvcore_nn = pytest.importorskip("fvcore.nn")
    network = create_network(name, channels, classes, patch_size, **overrides).eval()
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    counter = fvcore_nn.FlopCountAnalysis(network, torch.zeros(1, channels, *patch_size))
    counter.unsupported_ops_warnings(False)
    with torch.no_grad():
        assert counter.total() / 1e9 == pytest.approx(giga, rel=0.005)


@pytest.fixture(scope="module")
def golden():
    """A released network's names, shapes and output (every fourth voxel) on weights drawn from their names."""
    archive = np.load(DATA / "qt_unet_tiny_64.npz")
    return json.loads(str(archive["shapes"])), torch.from_numpy(archive["output"])


class TestReleasedWeights:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize("gradients", [True, False])
    def test_released_output(self, golden, fused, gradients):
        shapes, expected = golden
        network = create_network("qt_unet_tiny", 1, 3, (64, 64, 64), reference_compat=True).eval()
        network.load_state_dict(from_reference("qt_unet", weights_from_names(shapes)), strict=True)
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        with torch.set_grad_enabled(gradients):
            output = network(golden_input((1, 1, 64, 64, 64)))[..., ::4, ::4, ::4].detach()
        assert (output - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_default_differs_where_windows_are_clamped(self, golden):
        shapes, expected = golden
        network = create_network("qt_unet_tiny", 1, 3, (64, 64, 64)).eval()
        network.load_state_dict(from_reference("qt_unet", weights_from_names(shapes)))
        with torch.no_grad():
            output = network(golden_input((1, 1, 64, 64, 64)))[..., ::4, ::4, ::4]
        assert (output - expected).abs().max() > 1e-2 * expected.abs().max()

    @pytest.mark.parametrize(
        "listing,name,patch_size,channels,classes",
        [
            ("qt_unet_tiny_4ch_3cls_128", "qt_unet_tiny", (128, 128, 128), 4, 3),
            ("qt_unet_a_tiny_4ch_3cls_128", "qt_unet_a_tiny", (128, 128, 128), 4, 3),
            ("qt_unet_2d_tiny_3ch_20cls", "qt_unet_tiny", (128, 128), 3, 20),
        ],
    )
    def test_every_released_name(self, listing, name, patch_size, channels, classes):
        shapes = released_keys("qt_unet")[listing]
        released = {f"module.{key}": torch.zeros(shape) for key, shape in shapes}
        weights = from_reference("qt_unet", released)
        network = create_network(name, channels, classes, patch_size, reference_compat=True)
        network.load_state_dict(weights, strict=True)
        found = identify("qt_unet", weights)
        assert (found.name, found.input_channels, found.num_classes, found.ndim) == (
            name,
            channels,
            classes,
            len(patch_size),
        )

    def test_weights_of_something_else(self):
        with pytest.raises(ValueError, match="not the weights of a released QT-UNet"):
            from_reference("qt_unet", {"conv1.weight": torch.zeros(1)})
        with pytest.raises(ValueError, match="unknown family"):
            from_reference("resnet", {})


class TestOverrides:
    def test_strides_of_patch_embedding_per_axis(self):
        network = create_network("qt_unet_tiny", 1, 2, (12, 64, 48), patch_embed_stride=(1, 4, 4), num_stages=3)
        assert network.strides == [[1, 1, 1], [1, 4, 4], [2, 2, 2], [2, 2, 2]]
        assert network(torch.zeros(1, 1, 12, 64, 48)).shape == (1, 2, 12, 64, 48)

    def test_voxel_tokens_need_no_stride_of_their_own(self):
        network = create_network(
            "qt_unet_tiny", 1, 2, (16, 24), patch_embed_stride=1, num_stages=3, deep_supervision=True
        )
        assert network.strides == [[1, 1], [2, 2], [2, 2]]
        assert [o.shape[2:] for o in network(torch.zeros(1, 1, 16, 24))] == [(16, 24), (8, 12)]

    def test_in_plane_merging_keeps_depth(self):
        network = create_network("qt_unet_a_tiny", 1, 2, (20, 32, 32))
        assert network.strides[2:] == [[1, 2, 2]] * 3

    @pytest.mark.parametrize("norm_placement", ["post", "pre"])
    def test_norm_placement(self, norm_placement):
        network = create_network(
            "qt_unet_tiny", 1, 2, (32, 32, 32), norm_placement=norm_placement, deep_supervision=True
        )
        sum(o.mean() for o in network(torch.randn(1, 1, 32, 32, 32))).backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_windows_per_stage_and_axis(self):
        windows = [(2, 4, 4), 4, (4, 2, 2), 2]
        network = create_network("qt_unet_tiny", 1, 2, (32, 64, 64), window_sizes=windows)
        used = [stage.blocks[0].attn.partition.window_size for stage in network.encoder.stages]
        assert used == [(2, 4, 4), (4, 4, 4), (2, 2, 2), (1, 2, 2)]

    def test_drop_path_of_the_decoder_mirrors_the_encoder(self):
        network = create_network("qt_unet_tiny", 1, 2, (32, 32), drop_path_rate=0.6)
        rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in network.encoder.stages for b in s.blocks]
        assert rates == pytest.approx([0.1 * i for i in range(7)])
        decoder = [getattr(b.drop_path, "drop_prob", 0.0) for level in network.decoder.levels for b in level.blocks]
        assert decoder == pytest.approx([0.4, 0.5, 0.2, 0.3, 0.0, 0.1])

    @pytest.mark.parametrize(
        "overrides,message",
        [
            ({"norm_placement": "middle"}, "norm_placement must be 'post' or 'pre'"),
            ({"num_stages": 1}, "num_stages must be at least 2"),
            ({"depths": (2, 2)}, r"depths must have one entry per stage \(4\)"),
            ({"patch_embed_stride": (4, 4)}, "patch_embed_stride must be an integer or one integer per axis"),
            ({"window_sizes": (7, 7, 7)}, r"window_sizes must be an integer or one entry per stage \(4\)"),
            ({"window_sizes": 0}, "must be positive"),
            ({"strides": [[1, 1, 1], [2, 2, 2]]}, "contradict"),
            ({"embed_dim": 50}, "num_heads 3 does not divide"),
        ],
    )
    def test_contradictions(self, overrides, message):
        with pytest.raises(ValueError, match=message):
            create_network("qt_unet_tiny", 1, 2, (64, 64, 64), **overrides)
