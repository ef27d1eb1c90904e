"""Transfer weights into a network that may differ in patch, windows, stride, channels or number of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .limits import check_finite
from .load_report import LoadReport

# takes a tensor's name, its value in the source and the network's tensor; returns the value in the network's shape and
# the change in words ("" for none), or None if the adapter does not apply
Adapter = Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers of a network, each under one name; they share their memory with the network."""
    tensors: dict[str, Any] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stored = network.state_dict().keys()
    return {name: value.detach() for name, value in tensors.items() if name in stored}


def by_first_names(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights that are stored under another name of a shared layer, as ``tensors_of`` names them.

    nnU-Net's networks register layers under several names. A state dict has all of them, a safetensors file of a whole
    network one, which need not be the first. Where it has several, the first counts.

    Args:
        network: network to load into.
        weights: weights by its names.
    """
    first: dict[int, str] = {}
    names = {}
    for named in (network.named_parameters, network.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    return {
        names.get(name, name): value
        for name, value in weights.items()
        if names.get(name, name) == name or names[name] not in weights
    }


def transfer(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], adapters: Sequence[Adapter] = (), origin: str = ""
) -> LoadReport:
    """Load weights into a network's tensors, in place.

    The first adapter that applies to a tensor determines its value. If none applies, a tensor of the same shape is
    copied; any other keeps its initialisation.

    Args:
        target: parameters and buffers of the network by name, such as its ``state_dict``.
        source: weights by the target's names; those with other names are reported as unused.
        adapters: adapters, tried in this order.
        origin: origin of the weights in words, for the load report.

    Returns:
        the load report; its names are in the order of ``target`` and ``source``.

    Raises:
        ValueError: if a tensor that the target has is NaN, infinite, or of no real numbers where those belong; nothing
            is loaded then.
    """
    wanted = {name: value for name, value in source.items() if name in target}
    check_finite(wanted, origin or "the source")
    for name, value in wanted.items():
        if target[name].is_floating_point() and not value.is_floating_point():
            kind = "complex" if value.is_complex() else "quantised"
            raise ValueError(
                f"{origin or 'the source'} holds {value.dtype} in {name}, so it is {kind}: get the weights as float"
            )
    report = LoadReport(origin, unused=[name for name in source if name not in target])
    for name, tensor in target.items():
        if name not in source:
            report.fresh[name] = "not in the source"
            continue
        value = source[name]
        applicable = adapters if value.numel() else ()
        adapted = next((a for adapt in applicable if (a := adapt(name, value, tensor)) is not None), None)
        if adapted is None and value.shape != tensor.shape:
            report.fresh[name] = f"shape {tuple(value.shape)} in the source, {tuple(tensor.shape)} here"
            continue
        value, change = adapted or (value, "")
        with torch.no_grad():
            tensor.copy_(value)
        if change:
            report.adapted[name] = change
        else:
            report.loaded.append(name)
    return report
