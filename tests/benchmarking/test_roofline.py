"""Costs of operations compared with counts by hand, and floors with measured times."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_transformers.architectures import create_network
from nnunet_transformers.benchmarking.costs import Cost
from nnunet_transformers.benchmarking.machine import Rates, measure_rates
from nnunet_transformers.benchmarking.profile import profile_layers
from nnunet_transformers.benchmarking.roofline import measure_roofline

RATES = Rates(1e11, 2e10)


def cost(network: nn.Module, image: torch.Tensor, backward: bool = False) -> Cost:
    return sum((row.cost for row in profile_layers(network, image, backward, RATES, runs=1)), Cost())


class Attention(nn.Module):
    """Self-attention of the image, scaled by a parameter so that the operations have a backward pass."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.scale = fused, nn.Parameter(torch.ones(()))

    def forward(self, image):
        q = image * self.scale
        if self.fused:
            return F.scaled_dot_product_attention(q, q, q)
        return (q @ q.transpose(-2, -1)).softmax(-1) @ q


class TestCosts:
    def test_linear(self):
        network, image = nn.Linear(8, 16), torch.zeros(32, 8, requires_grad=True)
        numbers = 32 * 8 + 8 * 16 + 32 * 16
        assert cost(network, image) == Cost(32 * 8 * 16, 4 * (numbers + 16))
        # the gradients of image and weight are two products of the same three matrices
        assert cost(network, image, backward=True) == Cost(3 * 32 * 8 * 16, 4 * (3 * numbers + 16))

    @pytest.mark.parametrize("groups", [1, 8])
    @pytest.mark.parametrize("needs_gradient", [True, False])
    def test_convolution(self, groups, needs_gradient):
        network = nn.Conv3d(8, 8, 3, padding=1, groups=groups, bias=False)
        image = torch.zeros(2, 8, 6, 6, 6, requires_grad=needs_gradient)
        forward = 2 * 6**3 * 8 * (8 // groups) * 27
        assert cost(network, image) == Cost(forward, 4 * (2 * image.numel() + network.weight.numel()))
        assert cost(network, image, backward=True).multiply_adds == forward * (3 if needs_gradient else 2)

    @pytest.mark.parametrize("fused", [True, False])
    def test_attention_without_its_scores(self, fused):
        length, head_dim = 64, 16
        forward = cost(Attention(fused), torch.zeros(2, 3, length, head_dim))
        assert forward.multiply_adds == 2 * 6 * length**2 * head_dim
        # two matrices in and one out of each of two products, or three in and one out; never the scores
        assert forward.bytes == 4 * 4 * 6 * length * head_dim
        both = cost(Attention(fused), torch.zeros(2, 3, length, head_dim), backward=True)
        # four products of backward, and the scores once more where they are not kept
        assert both.multiply_adds == (7 if fused else 6) * 6 * length**2 * head_dim

    @pytest.mark.parametrize("name", ["qt_unet_tiny", "unet2022_tiny", "mit_7"])
    def test_totals_of_networks(self, name):
        network = create_network(name, 1, 3, (64, 64, 64)).eval()
        counted = cost(network, torch.zeros(1, 1, 64, 64, 64))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.to("meta")(torch.empty(1, 1, 64, 64, 64, device="meta"))
        assert counted.multiply_adds == counter.get_total_flops() // 2
        assert counted.bytes > 4 * sum(p.numel() for p in network.parameters() if p.ndim > 2)

    def test_published_total(self):
        """12.65 G with norms, see the tests of the network; they have the difference."""
        network = create_network("qt_unet_tiny", 1, 14, (96, 96, 96)).eval()
        assert cost(network, torch.zeros(1, 1, 96, 96, 96)).multiply_adds == pytest.approx(12.65e9, rel=0.025)


@pytest.fixture(scope="module")
def rates():
    return measure_rates("cpu")


def test_network_stays_above_its_floor(rates):
    network = create_network("qt_unet_tiny", 1, 3, (32, 32, 64)).eval()
    summary = measure_roofline(network, torch.randn(1, 1, 32, 32, 64), rates, runs=1)
    for figures in summary.values():
        assert 0 < figures["multiply_adds_s"] <= figures["floor_s"] < figures["measured_s"]
        assert figures["share"] == figures["floor_s"] / figures["measured_s"]
        lost = [gap["seconds"] - gap["floor_s"] for gap in figures["gaps"]]
        assert len(lost) == 3
        assert lost == sorted(lost, reverse=True)
    # backward is two thirds of the products, and attention's scores again
    forward, both = (summary[key]["multiply_adds"] for key in ("forward", "forward_backward"))
    assert 2.9 < both / forward < 3.6
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convolution_alone_is_near_its_floor(rates):
    network = nn.Conv3d(128, 128, 3, bias=False).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 128, 26, 26, 26).to(memory_format=torch.channels_last_3d)
    figures = measure_roofline(network, image, rates, runs=5)["forward"]
    assert 0.3 < figures["share"] < 2
