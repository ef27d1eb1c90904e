"""The examples of the documentation: a network of one's own keeps the contract of the package's."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch

from nnunet_transformers.architectures import create_network, get_network
from tests.architectures import test_networks as contract

NETWORK = "hybrid_unet"


@pytest.fixture(autouse=True)
def network(examples):
    import_module(NETWORK)


@pytest.mark.parametrize("dimensions", ["2d", "3d"])
@pytest.mark.parametrize("check", [name for name in vars(contract.TestNetwork) if name.startswith("test_")])
def test_network_keeps_the_contract(check, dimensions):
    getattr(contract.TestNetwork(), check)(NETWORK, contract.PATCHES[dimensions])


def test_network_of_anisotropic_data():
    example = create_network(NETWORK, 1, 3, (16, 64, 32), deep_supervision=True, **contract.ANISOTROPIC)
    sizes = [tuple(output.shape[2:]) for output in example(torch.randn(1, 1, 16, 64, 32))]
    assert sizes == [(16, 64, 32), (16, 16, 8), (16, 8, 4), (16, 4, 2)]


def test_network_comes_back_from_a_plan():
    built = create_network(NETWORK, 1, 3, (32, 32, 32), auxiliary_heads=True)
    entry = get_network(NETWORK)
    arguments = {k: v for k, v in {**entry.all_arguments(3), "strides": built.strides}.items() if v is not None}
    arguments = json.loads(json.dumps({**arguments, "patch_size": (32, 32, 32), "auxiliary_heads": True}))
    twin = entry.network_class(input_channels=1, num_classes=3, **arguments)
    twin.load_state_dict(built.state_dict(), strict=True)
