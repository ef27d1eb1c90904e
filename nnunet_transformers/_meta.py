"""Modules without data: tensors on the meta device have shapes and types, and no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _NoInitialisation(TorchFunctionMode):
    """Passes over the in-place operations of which initialisations consist, for tensors without values."""

    skipped = frozenset(
        getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.skipped and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def without_data() -> Iterator[None]:
    """New modules have parameters on the meta device and are not initialised, which is most of the time they take."""
    with torch.device("meta"), _NoInitialisation():
        yield
