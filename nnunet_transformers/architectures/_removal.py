"""Parts of a built network replaced by the identity, for ablations. Weights keep their names, so any still load."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

SKIPS = "skips"
BLOCKS = "blocks"


def silence(network: nn.Module, pattern: str) -> int:
    """Let modules return zeros, so that a residual sum leaves what it is added to; their weights get no gradient.

    Args:
        network: network with the modules.
        pattern: regular expression of their names; what its first group matches has no further use and is frozen.

    Returns:
        the number of modules.
    """
    return _hook(network, pattern, lambda _module, _arguments, output: torch.zeros_like(output))


def bypass(network: nn.Module, pattern: str) -> int:
    """Let modules return their first argument; arguments as for ``silence``.

    Of a module that returns a tuple, the first entry is replaced.
    """

    def first_argument(_module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        return (arguments[0], *output[1:]) if isinstance(output, tuple) else arguments[0]

    return _hook(network, pattern, first_argument)


def cut_skips(decoder: nn.Module) -> None:
    """Let a decoder take zeros of all that its encoder hands on, except the last feature, the bottleneck."""

    def zeros(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.zeros_like(value)
        return type(value)(map(zeros, value))

    def without(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        *others, features = arguments
        return (*map(zeros, others), [*map(zeros, features[:-1]), features[-1]])

    decoder.register_forward_pre_hook(without)


def matching(network: nn.Module, pattern: str) -> Mapping[str, re.Match[str]]:
    """Modules whose whole names match a pattern, by name."""
    names = (name for name, _ in network.named_modules())
    return {name: match for name in names if (match := re.fullmatch(pattern, name))}


def _hook(network: nn.Module, pattern: str, hook: Callable[..., Any]) -> int:
    found = matching(network, pattern)
    for name, match in found.items():
        network.get_submodule(name).register_forward_hook(hook)
        network.get_submodule(match[1]).requires_grad_(False)
    return len(found)
