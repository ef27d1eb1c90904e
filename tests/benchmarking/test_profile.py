"""The profile is complete and attributes each operation to its layer."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.layers import WindowAttention, checkpointing
from nnunet_transformers.benchmarking import profile
from nnunet_transformers.benchmarking.attribution import OUTSIDE, LayerTracker, layer_names
from nnunet_transformers.benchmarking.machine import Rates
from nnunet_transformers.benchmarking.profile import MAX_ROWS, OperationRecorder, profile_layers, run_pass
from nnunet_transformers.cpu import use_kernels

RATES = Rates(1e11, 2e10)
CUBE = (64, 64, 64)


def plain_conv_unet():
    return PlainConvUNet(1, 4, (32, 64, 128, 256), nn.Conv3d, 3, (1, 2, 2, 2), 2, 3, 2, norm_op=nn.InstanceNorm3d)


def record(network: nn.Module, image: torch.Tensor) -> list:
    with LayerTracker(network) as tracker, OperationRecorder(tracker, RATES, image.device) as recorder:
        run_pass(network, image, backward=True)
    return recorder.records


@pytest.mark.parametrize("name", ["qt_unet_tiny", "unet2022_tiny", "mit_7", "PlainConvUNet"])
def test_rows_of_networks(name):
    size = (16, 16, 16) if name == "PlainConvUNet" else CUBE
    network = plain_conv_unet() if name == "PlainConvUNet" else use_kernels(create_network(name, 1, 3, size))
    rows = profile_layers(network, torch.zeros(1, 1, *size), backward=True, rates=RATES, runs=1)
    assert 10 <= len(rows) <= MAX_ROWS
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True) or "short" in rows[
        -1
    ].layer
    matrix_work = {row.layer for row in rows if row.floor_s}
    assert matrix_work
    assert not any(OUTSIDE in layer or "LayerNorm" in layer for layer in matrix_work)


def test_names():
    network = create_network("qt_unet_tiny", 1, 3, CUBE)
    names = layer_names(network)
    assert names["encoder.stages.0.blocks.1.attn.qkv"] == "encoder.stages.0 WindowAttention"
    assert names["encoder.stages.0.blocks.1.mlp.fc1"] == "encoder.stages.0 Mlp"
    assert names["encoder.stages.0.blocks.1.norm1"] == "encoder.stages.0 LayerNorm"
    assert names["encoder.stages.0.blocks.1"] == "encoder.stages.0 QTBlock"
    assert names["stem.proj"] == "stem PatchEmbed"
    assert names["decoder.expand"] == "decoder Linear"
    assert names[""] == "QTUNet"
    assert layer_names(use_kernels(network)) == names
    assert layer_names(plain_conv_unet())["encoder.stages.1.0.convs.0.conv"] == "encoder.stages.1 Conv3d"


def test_sum_is_the_time_of_the_pass():
    network = plain_conv_unet()
    image = torch.randn(1, 1, 32, 32, 32)
    record(network, image)
    start = time.perf_counter()
    records = record(network, image)
    wall = time.perf_counter() - start
    assert 0.7 * wall < sum(r.seconds for r in records) <= wall


class TestAttribution:
    def test_backward_has_the_layers_of_forward(self, monkeypatch):
        """The gradient of each weight is attributed to the layer of the weight, also in custom autograd functions."""
        monkeypatch.setattr(checkpointing, "CPU_CHUNK", checkpointing.DEVICE_CHUNK)  # nothing is computed twice
        network = use_kernels(create_network("qt_unet_tiny", 1, 3, CUBE))
        records = record(network, torch.randn(1, 1, *CUBE))
        scores = {r.layer for r in records if r.operation == "exp_"}
        assert scores == {f"{level} WindowAttention" for level in self.levels(network)}
        gelu, gelu_backward = ([r.layer for r in records if r.operation == o] for o in ("gelu", "gelu_backward"))
        assert sorted(gelu) == sorted(gelu_backward)
        forward = [r.layer for r in records if r.operation == "native_layer_norm"]
        backward = [r.layer for r in records if r.operation == "native_layer_norm_backward"]
        assert sorted(forward) == sorted(backward)

    @staticmethod
    def levels(network):
        return {n.partition(".blocks")[0] for n, m in network.named_modules() if isinstance(m, WindowAttention)}

    def test_module_used_twice_and_checkpointing(self):
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.twice, self.recomputed = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 5), nn.GELU())

            def forward(self, x):
                x = self.twice(self.twice(x)).tanh()
                return checkpoint(self.recomputed, x, use_reentrant=False)

        records = record(Network(), torch.randn(2, 4))
        products = [(r.layer, r.operation) for r in records if r.cost.multiply_adds]
        assert products.count(("twice Linear", "addmm")) == 2
        # the image needs no gradient
        assert products.count(("twice Linear", "mm")) == 3
        assert products.count(("recomputed.0 Linear", "addmm")) == 2
        assert products.count(("recomputed.0 Linear", "mm")) == 2
        assert [r.layer for r in records if r.operation == "tanh_backward"] == ["Network"]
        assert [r.layer for r in records if r.operation == "mean"] == [OUTSIDE]
        assert not any(handle for module in Network().modules() for handle in module._forward_hooks)


def test_compiled_network():
    with pytest.raises(ValueError, match=r"profile it before torch\.compile"):
        profile_layers(torch.compile(nn.Linear(2, 2)), torch.zeros(1, 2), False, RATES)


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(profile, "measure_rates", lambda device: RATES)
    arguments = ["profile", "mit_7", "--patch-size", "32,32,32", "--threads", "1", "--runs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    profile.main()
    output = capsys.readouterr().out
    assert "100 G multiply-adds/s, 20.0 GB/s" in output
    assert output.count("measured without the profile") == 2
    assert "encoder.stages.0 SpatialReductionAttention" in output
