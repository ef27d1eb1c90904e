"""The networks by which the contract is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_transformers.architectures import get_network
from nnunet_transformers.architectures.unet2022 import UNet2022
from nnunet_transformers.testing import network as network_checks
from nnunet_transformers.testing.network import _smaller, check_device, check_logits


@pytest.mark.parametrize(
    ("own", "smaller"), [((2, 2, 8, 2), (2, 1, 1, 1)), ((1, 3), (1, 1)), ((3, 3, 3, 3, 3, 0), (2, 1, 1, 1, 1, 0))]
)
def test_depths_of_any_number_of_stages(own, smaller):
    """The last number is that of all further stages."""
    assert _smaller((2, 1, 1, 1), own) == smaller


class Constant(UNet2022):
    """Its constant stays where it was made."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.offset = torch.ones(1)

    def forward(self, image):
        return super().forward(image + self.offset)


class Softmaxed(UNet2022):
    def forward(self, image):
        return super().forward(image).softmax(1)


@pytest.mark.parametrize(
    ("network_class", "check", "message"),
    [(Constant, check_device, "moved by _apply"), (Softmaxed, check_logits, "return logits, without softmax")],
)
def test_broken_networks(network_class, check, message, monkeypatch):
    entry = replace(get_network("unet2022_tiny"), network_class=network_class)
    small = {"depths": (1, 1, 1, 1)}

    def create(name, *arguments, **options):
        return network_class(*arguments, **{**entry.arguments_for(2), **options, **small})

    for name in ("create_network", "_create_shallow"):
        monkeypatch.setattr(network_checks, name, create)
    with pytest.raises(AssertionError, match=message):
        check("unet2022_tiny", (64, 96))
