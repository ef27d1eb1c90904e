"""The examples of the documentation: a network of one's own keeps the contract of the package's."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch

from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.testing import check_network

NETWORK = "hybrid_unet"


@pytest.fixture(autouse=True)
def network(examples):
    import_module(NETWORK)


@pytest.mark.parametrize("patch_size", [(64, 96), (32, 64, 32)], ids=["2", "3"])
def test_network_keeps_the_contract(patch_size):
    check_network(NETWORK, patch_size=patch_size)


def test_network_of_anisotropic_data():
    strides = {"patch_embed_stride": (1, 4, 4), "merge_strides": [(1, 2, 2), (1, 2, 2), (2, 2, 2)]}
    example = create_network(NETWORK, 1, 3, (16, 64, 32), deep_supervision=True, **strides)
    sizes = [tuple(output.shape[2:]) for output in example(torch.randn(1, 1, 16, 64, 32))]
    assert sizes == [(16, 64, 32), (16, 16, 8), (16, 8, 4), (16, 4, 2)]


def test_network_comes_back_from_a_plan():
    built = create_network(NETWORK, 1, 3, (32, 32, 32), auxiliary_heads=True)
    entry = get_network(NETWORK)
    arguments = {k: v for k, v in {**entry.all_arguments(3), "strides": built.strides}.items() if v is not None}
    arguments = json.loads(json.dumps({**arguments, "patch_size": (32, 32, 32), "auxiliary_heads": True}))
    twin = entry.network_class(input_channels=1, num_classes=3, **arguments)
    twin.load_state_dict(built.state_dict(), strict=True)
