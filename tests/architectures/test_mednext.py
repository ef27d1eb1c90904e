"""MedNeXt against MONAI's, its strides for thick slices, and larger kernels from trained smaller ones."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.mednext import UpBlock
from nnunet_transformers.weights import EncoderCheckpoint, encoder_weights
from nnunet_transformers.weights.network_weights import NetworkWeights

SMALL = {"width": 4, "depths": (1, 1, 1, 1, 1)}
NAMES = (
    (r"^stem\.", "stem.proj."),
    (r"^enc_stages\.", "encoder.stages."),
    (r"^down_blocks\.", "encoder.downsamples."),
    (r"^bottleneck\.", "encoder.stages.4."),
    (r"^dec_stages\.", "decoder.stages."),
    (r"^up_blocks\.", "decoder.upsamples."),
    (r"^out_0\.conv_out\.", "decoder.seg_layers.0."),
    # its heads are deepest first, and the first is the bottleneck's
    (r"^out_blocks\.(\d)\.conv_out\.", lambda match: f"decoder.seg_layers.{4 - int(match[1])}."),
    (r"\.conv1\.", ".depthwise."),
    (r"\.conv2\.", ".expand."),
    (r"\.conv3\.", ".compress."),
    (r"\.res_conv\.", ".shortcut."),
)


def from_monai(state_dict):
    """Its weights by our names; its heads are transposed convolutions of one element."""
    renamed = {}
    for name, value in state_dict.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.transpose(0, 1) if "seg_layers" in name and value.dim() > 1 else value
    return {name: value for name, value in renamed.items() if not name.startswith("decoder.seg_layers.4.")}


@pytest.mark.parametrize("patch_size", [(32, 48), (32, 16, 32)], ids=["2d", "3d"])
@pytest.mark.parametrize("size,kernel_size", [("s", 5), ("l", 3)])
def test_outputs_equal_monais(size, kernel_size, patch_size):
    mednext = pytest.importorskip("monai.networks.nets.mednext", exc_type=ImportError)
    name = f"mednext_{size}" + ("_k5" if kernel_size == 5 else "")
    torch.manual_seed(0)
    widths = {"s": (2, 2, 2, 2), "l": (3, 4, 8, 8)}[size]
    theirs = mednext.MedNeXt(
        spatial_dims=len(patch_size),
        init_filters=4,
        in_channels=2,
        out_channels=3,
        encoder_expansion_ratio=widths,
        decoder_expansion_ratio=widths[::-1],
        bottleneck_expansion_ratio=widths[-1],
        kernel_size=kernel_size,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=widths,
        blocks_bottleneck=widths[-1],
        blocks_up=widths[::-1],
    ).double()
    network = create_network(name, 2, 3, patch_size, deep_supervision=True, width=4).double()
    network.load_state_dict(from_monai(theirs.state_dict()))
    image = torch.randn(2, 2, *patch_size, dtype=torch.float64)
    with torch.no_grad():
        for own, expected in zip(network(image), theirs(image)[:4], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size,millions", [("s", 5.6), ("b", 10.5), ("m", 17.6), ("l", 61.8)])
def test_published_sizes(size, millions):
    """Parameters of table 1 with kernels of 3."""
    with without_data():
        network = create_network(f"mednext_{size}", 1, 2, (32, 32, 32), deep_supervision=True)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_upsampling_block_of_one_axis():
    """Against transposed convolutions written as zeros between elements; the missing element is a zero at the start."""
    torch.manual_seed(0)
    block = UpBlock(4, 2, (1, 2), expansion=2, kernel_size=3).double()
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    spread = torch.zeros(1, 4, 5, 11, dtype=torch.float64)
    spread[..., ::2] = x
    kernel = block.depthwise.weight.flip(2, 3)
    inner = torch.nn.functional.conv2d(spread, kernel, block.depthwise.bias, padding=1, groups=4)
    inner = block.compress(torch.nn.functional.gelu(block.expand(block.norm(inner))))
    short = torch.einsum("bchw,cd->bdhw", spread, block.shortcut.weight[..., 0, 0]) + block.shortcut.bias[:, None, None]
    result = block(x)
    assert not result[..., 0].any()
    torch.testing.assert_close(result[..., 1:], inner + short)


def test_strides_of_thick_slices():
    merges = [[1, 2, 2], [1, 2, 2], [2, 2, 2]]
    options = {**SMALL, "num_stages": 4, "merge_strides": merges, "deep_supervision": True}
    network = create_network("mednext_m", 1, 3, (6, 24, 16), **options)
    assert network.resolved_arguments == {"depths": (1, 1, 1, 1), "expansions": (2, 3, 4, 4)}
    assert network.strides == [[1, 1, 1], *merges]
    outputs = network(torch.randn(1, 1, 6, 24, 16))
    assert [tuple(output.shape[2:]) for output in outputs] == [(6, 24, 16), (6, 12, 8), (6, 6, 4)]
    sum(output.square().mean() for output in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())
    for arguments in ({"num_stages": 2}, {"kernel_size": 4}, {"merge_strides": 3}):
        with pytest.raises(ValueError, match="must be"):
            create_network("mednext_s", 1, 2, (64, 64), **arguments)


@pytest.mark.parametrize("whole", [True, False], ids=["network", "encoder"])
def test_upkern(whole):
    """Trained kernels of 3 become those of 5, linearly on each axis (section 2.3); the rest is copied."""
    patch_size = (16, 16)
    source = create_network("mednext_s", 1, 2, patch_size, **SMALL)
    weights = (
        NetworkWeights(source.state_dict(), "trained", source, patch_size)
        if whole
        else EncoderCheckpoint(encoder_weights(source), "mednext_s", patch_size, 1, overrides=SMALL)
    )
    network = create_network("mednext_s_k5", 1, 2, patch_size, **SMALL)
    report = weights.load_into(network)
    parts = ("stem.", "encoder.", "decoder.") if whole else ("stem.", "encoder.")
    own, trained = network.state_dict(), source.state_dict()
    for name in trained:
        if not name.startswith(parts):
            continue
        if not name.endswith("depthwise.weight"):
            assert torch.equal(own[name], trained[name]), name
            continue
        assert report.adapted[name] == "kernel 3x3 to 5x5"
        # element i of 5 lies at (i + 1/2) * 3/5 - 1/2 among 3, and beyond the ends is the last
        places = np.clip((np.arange(5) + 0.5) * 0.6 - 0.5, 0, 2)
        lines = np.array([[np.interp(p, range(3), np.eye(3)[j]) for j in range(3)] for p in places])
        expected = np.einsum("ai,bj,coij->coab", lines, lines, trained[name].double().numpy())
        np.testing.assert_allclose(own[name].numpy(), expected, atol=1e-6)
    assert not report.unused
