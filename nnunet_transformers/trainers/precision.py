"""Precision of training on CUDA: nnU-Net's float16, or bfloat16 or float32 where a plan specifies it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

AUTOCAST_DTYPE = "autocast_dtype"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def planned_autocast_dtype(configuration: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """Read the type that autocast uses in training.

    Args:
        configuration: of a plan; its entry ``autocast_dtype`` is "bfloat16", "float32" or "float16", the default.
        device: to train on; nnU-Net trains in float32 on devices other than CUDA.

    Raises:
        RuntimeError: if the entry is another, or the GPU does not support bfloat16.
    """
    name = configuration.get(AUTOCAST_DTYPE, "float16")
    if name not in DTYPES:
        raise RuntimeError(f"{AUTOCAST_DTYPE} in the plan's configuration must be {' or '.join(DTYPES)}, got {name!r}")
    needs_ampere = DTYPES[name] is torch.bfloat16 and device.type == "cuda" and torch.cuda.is_available()
    if needs_ampere and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RuntimeError(
            "the plan trains in bfloat16, which this GPU does not have (NVIDIA's have it from Ampere on); remove "
            f"{AUTOCAST_DTYPE} from the plan's configuration to train in float16"
        )
    return DTYPES[name]


@contextmanager
def default_autocast_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the type that CUDA's autocast uses where the caller states none, as nnU-Net does not.

    Autocast has no float32: networks leave it themselves (``in_float32``).
    """
    if dtype is torch.float32:
        yield
        return
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_dtype("cuda", before)


def in_float32(network: nn.Module, device: torch.device) -> None:
    """Make a network leave autocast, which nnU-Net enables around every step."""
    network.forward = torch.autocast(device.type, enabled=False)(network.forward)  # type: ignore[method-assign]
