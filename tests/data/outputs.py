"""What stored files are compared by: the same when they are made, at the version that wrote them, and when read later.

It imports nothing of ``nnunet_transformers``, whose modules move.
"""

from __future__ import annotations

import hashlib
import json
import math

import torch
from dynamic_network_architectures.architectures import primus
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

REPORTS = ("small left nodule", "there is a large cavity in the right lung")
SPACING, RECIPE = (1.5, 1.0, 1.0), {"lr": 0.001, "batch_size": 4, "betas": [0.9, 0.999]}


def fixed_input(*shape: int) -> torch.Tensor:
    """The same numbers between -1 and 1 on every machine."""
    return torch.arange(math.prod(shape), dtype=torch.float64).mul(0.37).sin().float().view(shape)


def digest(tensor: torch.Tensor) -> list[float]:
    """Mean, standard deviation and ten numbers of an output."""
    flat = tensor.detach().double().flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 10).long()]
    return [round(float(x), 7) for x in (flat.mean(), flat.std(), *picked)]


def network_digest(configuration: dict) -> dict:
    """Names and shapes of the parameters of a planned network."""
    architecture = configuration["architecture"]
    with torch.device("meta"):
        network = get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], (), 2, 3, deep_supervision=True
        )
    shapes = [(name, list(value.shape)) for name, value in sorted(network.state_dict().items())]
    return {
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
    }


class TinyPrimus(primus.PrimusS):
    """PrimusS is 90 MB, whatever its patch."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        primus.Primus.__init__(self, args[0], 24, kwargs.pop("patch_embed_size"), args[1], 2, 2, **kwargs)
