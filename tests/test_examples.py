"""The examples of the documentation: a network of one's own keeps the contract of the package's."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from nnunet_transformers.architectures import _registry, create_network, get_network
from tests.architectures import test_networks as contract

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
NETWORK = "hybrid_unet"


@pytest.fixture
def network(monkeypatch):
    """The module with the example's network, registered for one test."""
    monkeypatch.syspath_prepend(EXAMPLES)
    # other tests go through all networks that there are
    monkeypatch.setattr(_registry, "_networks", dict(_registry._networks))
    yield import_module(NETWORK)
    del sys.modules[NETWORK]


@pytest.mark.parametrize("dimensions", ["2d", "3d"])
@pytest.mark.parametrize("check", [name for name in vars(contract.TestNetwork) if name.startswith("test_")])
def test_network_keeps_the_contract(network, check, dimensions):
    getattr(contract.TestNetwork(), check)(NETWORK, contract.PATCHES[dimensions])


def test_network_of_anisotropic_data(network):
    example = create_network(NETWORK, 1, 3, (16, 64, 32), deep_supervision=True, **contract.ANISOTROPIC)
    sizes = [tuple(output.shape[2:]) for output in example(torch.randn(1, 1, 16, 64, 32))]
    assert sizes == [(16, 64, 32), (16, 16, 8), (16, 8, 4), (16, 4, 2)]


def test_network_comes_back_from_a_plan(network):
    built = create_network(NETWORK, 1, 3, (32, 32, 32), auxiliary_heads=True)
    entry = get_network(NETWORK)
    arguments = {k: v for k, v in {**entry.all_arguments(3), "strides": built.strides}.items() if v is not None}
    arguments = json.loads(json.dumps({**arguments, "patch_size": (32, 32, 32), "auxiliary_heads": True}))
    twin = entry.network_class(input_channels=1, num_classes=3, **arguments)
    twin.load_state_dict(built.state_dict(), strict=True)
