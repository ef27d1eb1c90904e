"""MONAI's networks, an optional dependency, and what they need to be parts of ours."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

EXTRA = "monai"


def is_installed() -> bool:
    """Whether MONAI is installed; it is not imported."""
    return find_spec("monai") is not None


def build(name: str, *arguments: Any, **options: Any) -> Any:
    """Build one of MONAI's networks, on the meta device too.

    Args:
        name: class in ``monai.networks.nets``.
        arguments, options: its arguments.

    Raises:
        ModuleNotFoundError: if MONAI is not installed; names the extra.
    """
    if not is_installed():
        raise ModuleNotFoundError(
            f"{name} is a network of MONAI, which is not installed: pip install 'nnunet-transformers[{EXTRA}]'"
        )
    networks = import_module("monai.networks.nets")
    with _RatesOnHost():
        return getattr(networks, name)(*arguments, **options)


class _RatesOnHost(TorchFunctionMode):
    """Keeps ``torch.linspace``, from which MONAI reads the rates of stochastic depth, away from the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            return func(*args, **{**(kwargs or {}), "device": "cpu"})
        return func(*args, **(kwargs or {}))
