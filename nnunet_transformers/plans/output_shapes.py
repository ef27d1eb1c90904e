"""Shapes of operations' outputs on tensors without data, kept from call to call.

Planning traces dozens of networks, and half of that time would go to shapes that torch computes in Python.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

_Output: TypeAlias = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device] | None


class OutputShapes:
    """Runs operations on tensors without data; shapes that take torch long to compute are kept.

    Blocks repeat within a network, and networks within a search, so most calls of an operation have been made before.

    Attributes:
        kept: operations whose outputs' shapes are kept.
        limit: number of calls that are kept; then all are forgotten, since a process can make plans for long.
    """

    limit = 2**15

    kept = frozenset(
        getattr(torch.ops.aten, name).default
        for name in (
            *("native_layer_norm", "native_layer_norm_backward", "gelu", "gelu_backward", "addmm", "flip", "roll"),
            *("slice_backward", "unfold_backward"),
        )
    ) | {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.sum.dim_IntList}

    def __init__(self) -> None:
        self._known: dict[Any, list[_Output]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``func(*args, **kwargs)``, an operation of ATen on tensors without data."""
        if func not in self.kept:
            return func(*args, **kwargs)
        key = func, _description(args), tuple((name, _description(value)) for name, value in kwargs.items())
        if (known := self._known.get(key)) is None:
            result = func(*args, **kwargs)
            outputs = result if isinstance(result, tuple) else (result,)
            if len(self._known) == self.limit:
                self._known.clear()
            self._known[key] = [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in outputs]
            return result
        new = tuple(
            None if output is None else torch.empty_strided(output[0], output[1], dtype=output[2], device=output[3])
            for output in known
        )
        return new if len(new) > 1 else new[0]


def _description(value: Any) -> Any:
    """Hashable; equal for arguments with which an operation has outputs of the same shapes and types."""
    if isinstance(value, Tensor):
        return value.device, value.dtype, value.shape, value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(_description(item) for item in value)
    return type(value), value
