"""Weights and inputs of golden outputs, which are rebuilt from names instead of being stored."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


def released_keys(family: str) -> dict[str, list[tuple[str, list[int]]]]:
    """Names and shapes in a family's released weights, by listing."""
    return json.loads((DATA / f"{family}_keys.json").read_text())


def weights_from_names(shapes: Iterable[tuple[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Each tensor is standard normal with the CRC-32 of its name as seed, scaled to keep activations near 1."""
    state_dict = {}
    for name, shape in shapes:
        values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype("float32")
        lower = name.lower()
        if "relative_position_bias_table" in name or name.endswith("gamma"):
            values = 0.5 * values
        elif "pos_embed" in lower or "posembed" in lower or name.split(".")[-1] == "cls_tokens1":
            values = 0.1 * values
        elif len(shape) == 1:
            values = 0.1 * values + float(name.endswith("weight"))
        else:
            values = values / max(1, int(np.prod(shape[1:]))) ** 0.5
        state_dict[name] = torch.from_numpy(values.astype("float32"))
    return state_dict


def golden_input(shape: Sequence[int]) -> Tensor:
    """The image that golden outputs were computed on."""
    return torch.from_numpy(np.random.RandomState(123).standard_normal(shape).astype("float32"))
