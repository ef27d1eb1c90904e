"""Transfer weights into a network that may differ in patch, windows, stride, channels or number of axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .load_report import LoadReport

# takes a tensor's name, its value in the source and the network's tensor; returns the value in the network's shape and
# the change in words ("" for none), or None if the adapter does not apply
Adapter = Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers of a network, each under one name; they share their memory with the network."""
    tensors: dict[str, Any] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stored = network.state_dict().keys()
    return {name: value.detach() for name, value in tensors.items() if name in stored}


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
    """
    report = LoadReport(origin, unused=[name for name in source if name not in target])
    for name, tensor in target.items():
        if name not in source:
            report.fresh[name] = "not in the source"
            continue
        value = source[name]
        adapted = next((a for adapt in adapters if (a := adapt(name, value, tensor)) is not None), None)
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
