"""Figures of one network, measured in this process."""

from __future__ import annotations

import time

import pytest
import torch

from nnunet_transformers.benchmarking.environment import describe_environment, processor_name
from nnunet_transformers.benchmarking.machine import Rates
from nnunet_transformers.benchmarking.measure import CT, Settings, measure, time_actions
from nnunet_transformers.benchmarking.scaling import in_child

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_every_figure(device):
    precision = "float16" if device == "cuda" else "float32"
    settings = Settings((32, 32, 32), 2, 3, 2, device, precision, seconds=0, volume=(40, 32, 48))
    # in a process that has not had that much memory before
    figures = in_child(measure, "mit_7", settings, Rates(1e12, 1e11))
    assert figures["parameters"] > 1e6
    assert all(value > 0 for key, value in figures.items() if key != "roofline")
    assert figures["training_step_s"] == figures["forward_backward_s"] + figures["optimiser_step_s"]
    # float32: weights; in training gradients and two moments besides
    assert 4 * figures["parameters"] < figures["forward_bytes"] < 12 * figures["parameters"]
    assert figures["training_bytes"] > 15 * figures["parameters"]
    roofline = figures["roofline"]
    assert set(roofline) == {"forward", "forward_backward"}
    assert all(of_pass["share"] > 0 and len(of_pass["gaps"]) == 3 for of_pass in roofline.values())


def test_multiply_adds_are_those_of_a_sample():
    one, two = (measure("mit_7", Settings((64, 64), batch_size=n, seconds=0, volume=())) for n in (1, 2))
    assert one["multiply_adds"] == two["multiply_adds"]
    assert "voxels_per_s" not in one
    assert "roofline" not in one


def test_sliding_window_of_slices():
    assert measure("mit_7", Settings((64, 64), seconds=0))["voxels_per_s"] > 0


def test_compiled(monkeypatch):
    compiled = []

    class Compiled(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            compiled.append(network)
            self.network, self.calls = network, 0

        def forward(self, image):
            self.calls += 1
            return self.network(image)

    made = []
    monkeypatch.setattr(torch, "compile", lambda network: made.append(Compiled(network)) or made[0])
    measure("mit_7", Settings((64, 64), compile=True, seconds=0, volume=()), Rates(1e12, 1e11))
    # forward and training, each once and twice more; counting and roofline without it
    assert made[0].calls == 6


def test_volumes():
    assert Settings((96, 96, 96)).volume_size == (144, 144, 144)
    assert Settings((320, 322)).volume_size == (1, 480, 483)
    assert Settings((128, 128, 128), device="cuda").volume_size == CT


def test_actions_take_turns():
    calls = []
    seconds = time_actions([lambda: calls.append("a"), lambda: calls.append("b")], CPU, 0)
    assert "".join(calls) == "ab" * 3
    assert len(seconds) == 2


def test_processor_time():
    """Waiting, as for other processes, takes none of it."""
    settings = Settings((8, 8), processor_time=True)
    waiting, wall = (time_actions([lambda: time.sleep(0.02)], CPU, 0, s.clock)[0] for s in (settings, Settings((8, 8))))
    assert waiting < 0.015 < wall


def test_environment(monkeypatch, tmp_path):
    described = describe_environment(CPU)
    assert described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"] == torch.__version__
    assert described["processor"] == processor_name() != ""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some: CPU\n")
    monkeypatch.setattr("nnunet_transformers.benchmarking.environment.CPUINFO", tmp_path / "cpuinfo")
    assert processor_name() == "Some: CPU"
    monkeypatch.setattr("nnunet_transformers.benchmarking.environment.CPUINFO", tmp_path / "missing")
    assert processor_name()
