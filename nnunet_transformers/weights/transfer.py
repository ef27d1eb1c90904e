"""The transfer of weights into a network that may differ in patch, windows, stride, channels or axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .load_report import LoadReport

# (name, value of the source, tensor of the network) to the value in that tensor's shape and the change in words, ""
# for none; None where the adapter does not apply
Adapter = Callable[[str, Tensor, Tensor], tuple[Tensor, str] | None]


def transfer(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], adapters: Sequence[Adapter] = (), origin: str = ""
) -> LoadReport:
    """Load weights into a network's tensors, in place.

    The first adapter that applies to a tensor decides about it; where none does, a tensor of the same shape is copied.
    What fits in no way is left at its initialisation.

    Args:
        target: parameters and buffers of the network by name, such as its ``state_dict``.
        source: weights by the target's names; those of other names are reported as unused.
        adapters: tried in this order.
        origin: of the weights in words, for the report.

    Returns:
        what was loaded, adapted, left fresh and unused, in the order of ``target`` and ``source``.
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
