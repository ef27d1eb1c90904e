"""Measured networks can be built and run at one patch, and their multiply-adds are counted alike."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_transformers.architectures import create_network
from nnunet_transformers.benchmarking import peers
from nnunet_transformers.benchmarking.measure import count_multiply_adds
from nnunet_transformers.benchmarking.networks import REFERENCE, build_network, build_on, choose_networks, is_ours
from nnunet_transformers.cpu import plain_class, use_kernels

# SwinUNETR's deepest map must have more than one element
PATCHES = {2: (64, 64), 3: (64, 32, 32)}
DEFAULTS = [(name, PATCHES[ndim]) for ndim in PATCHES for name in choose_networks([], ndim)]


@pytest.mark.parametrize("name,patch_size", DEFAULTS, ids=lambda value: str(value).replace(" ", ""))
def test_every_default_runs(name, patch_size):
    if name in ("SwinUNETR", "UNETR"):
        pytest.importorskip("monai")
    network = build_network(name, patch_size, 2, 3).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 2, *patch_size)).shape == (1, 3, *patch_size)


def test_choice():
    assert choose_networks([], 3)[0] == choose_networks(["mit_7"], 3)[0] == REFERENCE
    assert choose_networks(["mit_7", REFERENCE, "mit_7"], 2) == [REFERENCE, "mit_7"]
    assert not {"Primus-S", "UNETR"} & set(choose_networks([], 2))
    assert not {"setr_pup", "resnet50_unet"} & set(choose_networks([], 3))
    assert "unet2022_large/tiling" in choose_networks(["unet2022_large/tiling"], 3)
    assert is_ours("qt_unet_tiny/tiling") and not is_ours("ResEnc-L")
    for name, ndim, message in (
        ("unet2022", 3, "unknown network 'unet2022'; did you mean unet2022_"),
        ("mit_7/tiling", 3, "unknown network 'mit_7/tiling'"),
        ("Primus-S", 2, "Primus-S has no 2D form"),
        ("setr_pup", 3, "setr_pup has no 3D form"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_networks([name], ndim)


def test_peers_are_as_their_own_code_configures_them():
    """nnU-Net's published configurations for isotropic images have six stages at this patch."""
    plain, residual = (build_network(name, (128, 128, 128), 1, 2) for name in ("PlainConvUNet", "ResEnc-L"))
    for network in (plain, residual):
        assert tuple(network.encoder.output_channels) == (32, 64, 128, 256, 320, 320)
        assert not network.decoder.deep_supervision
    assert [len(stage.blocks) for stage in residual.encoder.stages] == [1, 3, 4, 6, 6, 6]
    with pytest.raises(ValueError, match=r"no patch of .*; use --patch-size 112,112,112"):
        build_network("PlainConvUNet", (100, 100, 100), 1, 2)


def test_a_package_that_is_missing_or_too_old_is_named(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    for name in ("SwinUNETR", "UNETR"):
        with pytest.raises(ModuleNotFoundError, match="MONAI is not installed: pip install"):
            build_network(name, (64, 64, 64), 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr("timm.__version__", "1.0.31")
        with pytest.raises(ValueError, match=r"Primus needs timm < 1\.0\.23, here is 1\.0\.31: .* measure ours"):
            build_network("PrimusV3-S", (64, 64, 64), 1, 2)
    monkeypatch.delattr("dynamic_network_architectures.architectures.primus.PrimusV3S")
    with pytest.raises(ModuleNotFoundError, match="PrimusV3-S needs a newer version: pip install -U"):
        build_network("PrimusV3-S", (64, 64, 64), 1, 2)


def test_tiling_windows_are_those_of_the_table():
    tiling = build_network("qt_unet_tiny/tiling", (96, 96, 96), 1, 14)
    same = create_network("qt_unet_tiny", 1, 14, (96, 96, 96), window_sizes=[6, 6, 6, 3])
    assert tiling.resolved_arguments == same.resolved_arguments
    assert tiling.state_dict().keys() == same.state_dict().keys()
    assert all(tiling.state_dict()[key].shape == value.shape for key, value in same.state_dict().items())


@pytest.mark.parametrize("name,giga", [("qt_unet_tiny", 12.65), ("qt_unet_tiny/tiling", 8.71)])
def test_multiply_adds_are_the_published_ones(name, giga):
    """Those are fvcore's, with norms: 2 to 3 % of them."""
    with torch.device("meta"):
        network, image = build_network(name, (96, 96, 96), 1, 14).eval(), torch.empty(1, 1, 96, 96, 96)
    assert 0.96 * giga < count_multiply_adds(network, image) / 1e9 < 0.98 * giga


def test_fused_attention_and_that_of_training_are_counted():
    network = use_kernels(create_network("qt_unet_tiny", 1, 2, (32, 32, 32)).eval())
    image = torch.randn(1, 1, 32, 32, 32)
    fused = count_multiply_adds(network, image)
    with FlopCounterMode(display=False) as counter:
        network(image)  # with gradients: cpu/attention.py
    assert counter.get_total_flops() // 2 == fused
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert count_multiply_adds(network, image) == fused


@pytest.mark.parametrize(
    "device,name,changes", [("cpu", "mit_7", True), ("meta", "mit_7", False), ("cpu", "UNETR", False)]
)
def test_kernels_are_for_our_networks_on_cpu(device, name, changes):
    """Networks of this package get the kernels of trainer and predictor; peers are unchanged."""
    if name == "UNETR":
        pytest.importorskip("monai")
    network = build_on(torch.device(device), name, PATCHES[3], 1, 2)
    assert any(type(module) is not plain_class(module) for module in network.modules()) == changes
