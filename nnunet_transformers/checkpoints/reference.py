"""Weights that the papers' authors released."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..architectures import create_network, get_checkpoint_filter, list_networks


def from_reference(family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a release's weights to this package's names.

    >>> network = create_network("qt_unet_tiny", 1, 3, (64, 64, 64), reference_compat=True)
    >>> network.load_state_dict(from_reference("qt_unet", released))

    Args:
        family: "qt_unet".
        state_dict: weights with the release's names; prefixes of DataParallel and torch.compile may be there.

    Returns:
        A state dict that loads strictly into the same variant, built with ``reference_compat=True``.

    Raises:
        ValueError: if the family is unknown or the weights are not the family's.
    """
    plain = {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in state_dict.items()}
    return get_checkpoint_filter(family)(plain)


@dataclass(frozen=True)
class Identity:
    """The network that some weights are of: arguments of ``create_network``."""

    name: str
    input_channels: int
    num_classes: int
    ndim: int
    overrides: dict[str, Any]


def identify(family: str, state_dict: Mapping[str, Tensor]) -> Identity:
    """Find the registered network that translated weights load into strictly.

    Raises:
        ValueError: if none does.
    """
    try:
        stem, head = state_dict["stem.proj.weight"], state_dict["decoder.seg_layers.0.weight"]
    except KeyError as error:
        raise ValueError(f"these weights lack {error}, so they are no whole {family} network") from error
    shapes = {key: value.shape for key, value in state_dict.items()}
    ndim, channels, classes = stem.dim() - 2, stem.shape[1], head.shape[0]
    # shortest name first: in 2D the in-plane variants are the plain networks
    for name in sorted((n for n in list_networks() if n.startswith(family)), key=len):
        for overrides in ({}, {"cross_attention": False}):
            with torch.device("meta"):
                network = create_network(name, channels, classes, (128,) * ndim, **overrides)
            if {key: value.shape for key, value in network.state_dict().items()} == shapes:
                return Identity(name, channels, classes, ndim, overrides)
    raise ValueError(f"these weights fit no {family} network of the published sizes")
