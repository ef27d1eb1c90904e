"""Translate and identify the weights that the papers' authors released."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from .._meta import without_data
from ..architectures import SegmentationNetwork, create_network, get_network, get_released_family, list_networks


def from_reference(family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate released weights to this package's names.

    >>> network = create_network("qt_unet_tiny", 1, 3, (64, 64, 64), reference_compat=True)
    >>> network.load_state_dict(from_reference("qt_unet", released))

    Args:
        family: "qt_unet", "unet2022" or "mit".
        state_dict: weights with the release's names, with or without the prefixes of DataParallel and torch.compile.

    Returns:
        a state dict that loads strictly into the same variant, built with ``reference_compat=True``.

    Raises:
        ValueError: if the family is unknown or the weights are not the family's.
    """
    plain = {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in state_dict.items()}
    return get_released_family(family).checkpoint_filter(plain)


@dataclass(frozen=True)
class Identity:
    """Network that weights belong to, as arguments of ``create_network``.

    Attributes:
        name: registered name.
        input_channels: image channels.
        num_classes: output channels.
        ndim: number of spatial axes.
        overrides: further arguments of ``create_network``.
        patch_size: patch size that the weights belong to; None if they fit every size.
    """

    name: str
    input_channels: int
    num_classes: int
    ndim: int
    overrides: dict[str, Any]
    patch_size: tuple[int, ...] | None


def identify(family: str, state_dict: Mapping[str, Tensor], patch_size: Sequence[int] | None = None) -> Identity:
    """Find the registered network that translated weights load into strictly.

    Args:
        family: as for ``from_reference``.
        state_dict: result of ``from_reference``.
        patch_size: patch size that the weights belong to; by default the published sizes are tried. MiT's weights
            depend on it (position embeddings), as do UNet-2022's (windows). MiT's release stores only the number of
            tokens, so a size with swapped axes fits as well: pass the size if it is known.

    Raises:
        ValueError: if the weights fit no registered network.
    """
    released = get_released_family(family)
    names = [name for name in list_networks() if name.startswith(f"{family}_")]
    stem_key = f"{get_network(names[0]).network_class.keys_to_in_proj[0]}.weight"
    try:
        stem, head = state_dict[stem_key], state_dict[released.head]
    except KeyError as error:
        raise ValueError(f"these weights lack {error}, so they are not a whole {family} network") from error
    ndim, channels, classes = stem.dim() - 2, stem.shape[1], head.shape[0]
    if patch_size is not None:
        candidates = [tuple(patch_size)]
    elif released.patch_sizes is None:
        candidates = [(128,) * ndim]
    else:
        candidates = [size for size in released.patch_sizes if len(size) == ndim]
    # shortest name first: in 2D the in-plane variants are the plain networks
    for name, overrides, size in product(sorted(names, key=len), released.variants, candidates):
        with without_data():
            try:
                network = create_network(name, channels, classes, size, **overrides)
            except ValueError:  # a stride that does not divide this size
                continue
            if _fits(network, {key: torch.empty(value.shape) for key, value in state_dict.items()}):
                known = None if released.patch_sizes is None else size
                return Identity(name, channels, classes, ndim, overrides, known)
    tried = " or ".join("x".join(map(str, size)) for size in candidates)
    raise ValueError(
        f"these weights fit no {family} network of the published widths and depths"
        + (f" at a patch size of {tried}" if released.patch_sizes is not None else "")
    )


def identify_encoder(family: str, state_dict: Mapping[str, Tensor], ndim: int) -> SegmentationNetwork:
    """Find the registered network whose stem and encoder translated weights are.

    Args:
        family: as for ``from_reference``.
        state_dict: result of ``from_reference``, or one form of a pair of 2D and 3D.
        ndim: number of spatial axes.

    Returns:
        the network on the meta device, at the published patch size that fits.

    Raises:
        ValueError: if the weights are the encoder of no registered network.
    """
    released = get_released_family(family)
    names = [name for name in list_networks(ndim) if name.startswith(f"{family}_")]
    sizes = [size for size in released.patch_sizes or ((128,) * ndim,) if len(size) == ndim]
    numbers = {name: value.numel() for name, value in state_dict.items()}
    for name, overrides, size in product(sorted(names, key=len), released.variants, sizes):
        stem = state_dict.get(f"{get_network(name).network_class.keys_to_in_proj[0]}.weight")
        if stem is None or stem.dim() - 2 != ndim:
            continue
        with without_data():
            try:
                network = create_network(name, stem.shape[1], 2, size, **overrides)
            except ValueError:
                continue
        own = network.encoder_state_dict()
        if all(numbers.get(key) == value.numel() for key, value in own.items()):
            return network
    raise ValueError(f"these weights are the encoder of no {ndim}D {family} network of the published widths and depths")


def _fits(network: nn.Module, weights: dict[str, Tensor]) -> bool:
    if network.state_dict().keys() != weights.keys():
        return False
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError:
        return False
    return True
