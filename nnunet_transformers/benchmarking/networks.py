"""Networks that can be measured: registered networks and peers, by name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import nn

from .._meta import without_data
from ..architectures import create_network, get_network, list_networks
from ..architectures.layers.window_choice import choose_windows
from ..cpu import use_kernels
from .peers import PEERS

# network that ratios refer to; it is always measured
REFERENCE = "PlainConvUNet"
# suffix of a network's name: with windows that tile its token grids, as the planner chooses them
TILING = "/tiling"
DEFAULTS = ("qt_unet_tiny", f"qt_unet_tiny{TILING}", "unet2022_tiny", "mit_7", "mit_22", "setr_pup", "resnet50_unet")


def is_ours(name: str) -> bool:
    """Tell whether a network that is measured is one of this package's."""
    return name not in PEERS


def known_networks(ndim: int) -> list[str]:
    """Return all names that can be measured with a number of spatial axes (2 or 3)."""
    ours = list_networks(ndim)
    tiling = [f"{name}{TILING}" for name in ours if "window_sizes" in get_network(name).override_names]
    return [*ours, *tiling, *(name for name, peer in PEERS.items() if ndim in peer.dimensions)]


def choose_networks(names: Sequence[str], ndim: int) -> list[str]:
    """Choose the networks of a run.

    Args:
        names: requested names; if empty, all peers and ``DEFAULTS``.
        ndim: number of spatial axes.

    Returns:
        the names, ``REFERENCE`` first.

    Raises:
        ValueError: if a name is unknown or the network does not exist with this number of axes.
    """
    known = known_networks(ndim)
    names = names or [name for name in (*PEERS, *DEFAULTS) if name in known]
    for name in names:
        if name in known:
            continue
        if name in known_networks(5 - ndim):  # 2 for 3 and 3 for 2
            raise ValueError(f"{name} has no {ndim}D form; give --patch-size the other number of axes")
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"unknown network {name!r}; {hint}")
    return list(dict.fromkeys([REFERENCE, *names]))


def build_network(name: str, patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build a network to measure, without deep supervision.

    Args:
        name: one of ``known_networks``.
        patch_size: voxels per axis.
        input_channels: image channels.
        num_classes: output channels.

    Raises:
        ValueError: if the patch does not suit the network.
        ModuleNotFoundError: if the network's package is not installed; the message names it.
    """
    if name in PEERS:
        return PEERS[name].build(patch_size, input_channels, num_classes)
    registered = name.removesuffix(TILING)
    if registered == name:
        return create_network(name, input_channels, num_classes, patch_size)
    with without_data():
        grid_sizes = create_network(registered, input_channels, num_classes, patch_size).grid_sizes
    windows = choose_windows(tuple(tuple(grid) for grid in grid_sizes))
    return create_network(registered, input_channels, num_classes, patch_size, window_sizes=windows)


def build_on(
    device: torch.device, name: str, patch_size: Sequence[int], input_channels: int, num_classes: int
) -> nn.Module:
    """Build a network for a device; on CPU ours get their kernels, as in training and prediction.

    Args:
        device: device to move the network to.
        name, patch_size, input_channels, num_classes: as for ``build_network``.

    Raises:
        ValueError, ModuleNotFoundError: as ``build_network``.
    """
    network = build_network(name, patch_size, input_channels, num_classes).to(device)
    return use_kernels(network) if device.type == "cpu" and is_ours(name) else network
