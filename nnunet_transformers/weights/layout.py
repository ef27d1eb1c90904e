"""TEMPORARY, replaced at the merge."""

from __future__ import annotations
from collections.abc import Collection, Mapping
from typing import Any
from torch import Tensor
from .file import STATE_DICT_KEYS


def find_state_dicts(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Tensor]]]:
    found = []

    def visit(value, where, depth):
        if not isinstance(value, Mapping) or depth > 3:
            return
        tensors = {k: v for k, v in value.items() if isinstance(v, Tensor)}
        if len(tensors) > len(value) / 2:
            found.append((where, tensors))
        for k, v in value.items():
            visit(v, f"{where}.{k}" if where else str(k), depth + 1)

    visit(content, "", 0)
    return found


def strip_prefix(weights: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    prefixes = {""}
    for name in weights:
        parts = name.split(".")
        prefixes |= {".".join(parts[:i]) + "." for i in range(1, min(len(parts), 5))}
    wanted = set(wanted)
    best = max(sorted(prefixes), key=lambda p: sum(n.startswith(p) and n[len(p) :] in wanted for n in weights))
    return {n[len(best) :] if n.startswith(best) else n: v for n, v in weights.items()}, best
