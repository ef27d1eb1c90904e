"""Networks without a part, to be trained so: ``without.UNet2022_attention`` is ``UNet2022`` without its attention.

The class exists for each class of a registered network and each part that it can do without, for plans to name it; it
takes the same arguments and has the same names of weights. ``nnunet-transformers ablate --retrain`` writes such plans.
"""

from __future__ import annotations

from functools import cache
from typing import Any

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


@cache
def __getattr__(name: str) -> Any:
    class_name, _, part = name.rpartition("_")
    base = next((c for n in list_networks() if (c := get_network(n).network_class).__name__ == class_name), None)
    if base is None or part not in base.may_be_removed():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __init__(self: SegmentationNetwork, *arguments: Any, **options: Any) -> None:
        base.__init__(self, *arguments, **options)
        self.remove(part)

    description = f"``{class_name}`` without its {part}."
    return type(name, (base,), {"__init__": __init__, "__module__": __name__, "__doc__": description})
