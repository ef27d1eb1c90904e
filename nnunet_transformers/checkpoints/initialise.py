"""Start a network from the weights that a plan names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..architectures.unet2022 import UNet2022
from .imagenet import load_imagenet
from .report import LoadReport


def initialise(network: nn.Module, specification: Mapping[str, Any]) -> LoadReport:
    """Load the weights of ``specification``, an entry of a plan's configuration, into a fresh network.

    Args:
        network: as the plan has it.
        specification: ``{"imagenet": {arguments of load_imagenet}}``.

    Raises:
        ValueError: if the specification is another, or its weights do not fit.
    """
    if set(specification) == {"imagenet"}:
        if not isinstance(network, UNet2022):
            raise ValueError(f"ImageNet weights are for UNet-2022, not {type(network).__name__}")
        return load_imagenet(network, **specification["imagenet"])
    raise ValueError(f"the plan's initialisation must be imagenet, got {', '.join(specification)}")
