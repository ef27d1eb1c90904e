"""Networks without a part, to be trained so: ``without.UNet2022_attention`` is ``UNet2022`` without its attention.

The class exists for each class of a registered network and each part that it can do without, for plans to name it; it
takes the same arguments and has the same names of weights. ``nnunet-transformers ablate --retrain`` writes such plans.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._network import SegmentationNetwork
from ._registry import get_network, list_networks


def class_without(network_class: type[SegmentationNetwork], part: str) -> type[SegmentationNetwork]:
    """Return the class of networks without a part.

    Args:
        network_class: class of a registered network.
        part: see ``SegmentationNetwork.parts``.
    """
    found: type[SegmentationNetwork] = globals()["__getattr__"](f"{network_class.__name__}_{part}")
    return found


def _without_gradient(
    base: type[SegmentationNetwork], part: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> list[str]:
    """Names of the parameters that have no further use without a part, such as its norm: DDP would wait for them."""
    given = inspect.signature(base).bind(*arguments, **options).arguments
    with torch.device("meta"), torch.inference_mode(False):  # which records gradients
        # eval mode: batch norm cannot train on one image whose map has one element
        twin = base(**{**given, "deep_supervision": True, "auxiliary_heads": None}).eval()
        twin.remove(part)
        outputs = twin(torch.empty(1, given["input_channels"], *twin.patch_size))
        total = torch.stack([output.sum() for output in ([outputs] if isinstance(outputs, Tensor) else outputs)]).sum()
        names, parameters = zip(*((n, p) for n, p in twin.named_parameters() if p.requires_grad), strict=True)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


@cache
def __getattr__(name: str) -> Any:
    class_name, _, part = name.rpartition("_")
    base = next((c for n in list_networks() if (c := get_network(n).network_class).__name__ == class_name), None)
    if base is None or part not in base.may_be_removed():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __init__(self: SegmentationNetwork, *arguments: Any, **options: Any) -> None:
        base.__init__(self, *arguments, **options)
        self.remove(part)
        for name in _without_gradient(base, part, arguments, options):
            self.get_parameter(name).requires_grad_(False)

    description = f"``{class_name}`` without its {part}."
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, "__doc__": description})
