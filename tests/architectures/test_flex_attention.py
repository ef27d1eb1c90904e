"""FlexAttention in window attention equals the plain products, where it is switched on."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.architectures.layers.flex_attention import set_flex_attention
from nnunet_transformers.architectures.layers.relative_position_bias import RelativePositionBias
from nnunet_transformers.architectures.layers.window_attention import WindowAttention
from nnunet_transformers.architectures.layers.window_partition import WindowPartition

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
    image = torch.randn(1, 1, 32, 32)
    calls = []
    name = "nnunet_transformers.architectures.layers.window_attention.biased_flex_attention"
    results = []
    with torch.no_grad(), monkeypatch.context() as patched:
        from nnunet_transformers.architectures.layers.flex_attention import biased_flex_attention as original

        patched.setattr(name, lambda *operands: calls.append(1) or original(*operands))
        for active in (None, True, False):
            if active is not None:
                set_flex_attention(network, active)
            calls.clear()
            results.append(network(image))
            assert bool(calls) == bool(active)
    torch.testing.assert_close(results[1], results[0])
    assert torch.equal(results[2], results[0])
