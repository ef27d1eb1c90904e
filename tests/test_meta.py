"""Modules without data: nothing is initialised, and tensors that have data are not touched."""

from __future__ import annotations

import torch
from torch import nn

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import create_network


def test_modules_have_shapes_only():
    with without_data():
        network = create_network("qt_unet_tiny", 1, 2, (32, 32))
    with torch.device("meta"):
        expected = create_network("qt_unet_tiny", 1, 2, (32, 32))
    own, others = network.state_dict(), expected.state_dict()
    assert list(own) == list(others)
    for name, value in own.items():
        assert value.is_meta
        assert (value.shape, value.dtype) == (others[name].shape, others[name].dtype)
    assert all(p.requires_grad for p in network.parameters())


def test_tensors_with_data_are_computed():
    """A network can compute a schedule or a table on the CPU while it is built."""
    with without_data():
        rates = torch.zeros(3, device="cpu").add_(2).mul_(3)
        layer = nn.Linear(2, 2, device="cpu")
        nn.init.constant_(layer.weight, 5)
    assert rates.tolist() == [6, 6, 6]
    assert layer.weight.unique().tolist() == [5]


def test_outside_everything_is_as_usual():
    with without_data():
        pass
    assert torch.zeros(2).add_(1).tolist() == [1, 1]
