"""FlexAttention in window attention equals the plain products, where it is switched on."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.layers import (
    RelativePositionBias,
    WindowAttention,
    WindowPartition,
    set_flex_attention,
)

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def _gradient(monkeypatch):
    """On a CPU the plain implementation has a gradient, which PyTorch refuses as the compiled one has none."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.usefixtures("_gradient")
@pytest.mark.parametrize("shifted", [False, True])
def test_against_matrix_products(shifted):
    partition = WindowPartition((6, 9), (3, 3), shifted)
    attention = WindowAttention(8, 2, partition, RelativePositionBias((3, 3), (3, 3), 2, init_std=1.0)).double()
    results = []
    for flex in (False, True):
        set_flex_attention(attention, flex)
        attention.fused_attn = False
        torch.manual_seed(1)
        tokens = torch.randn(2, 54, 8, dtype=torch.float64, requires_grad=True)
        output = attention(tokens)
        gradients = torch.autograd.grad(output.square().sum(), (tokens, *attention.parameters()))
        results.append((output, *gradients))
    for plain, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, plain)


def test_a_network_switches_it_on_and_off(monkeypatch):
    network = create_network("qt_unet_tiny", 1, 2, (32, 32)).eval()
    calls = []
    name = "nnunet_transformers.architectures.layers.window_attention.biased_flex_attention"
    monkeypatch.setattr(name, lambda q, k, v, bias, scale: calls.append(bias) or v)
    for active in (None, True, False):
        if active is not None:
            set_flex_attention(network, active)
        calls.clear()
        with torch.no_grad():
            network(torch.randn(1, 1, 32, 32))
        assert bool(calls) == bool(active)
