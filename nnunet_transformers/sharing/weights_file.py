"""Weights of a fold in a safetensors file, which stores a tensor with several names once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._reading import reading
from ..weights.limits import check_finite

ALIASES = "aliases"


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights; nnU-Net's U-Nets list most tensors several times, as their decoder holds the encoder.

    Raises:
        OSError: if the file cannot be written, for instance to a full disk.
    """
    first: dict[tuple, str] = {}
    kept, aliases = {}, {}
    for name, value in weights.items():
        place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype
        original = first.setdefault(place, name) if value.numel() else name
        if original == name:
            # copied, as other names may refer to other parts of the storage
            kept[name] = value.detach().cpu().contiguous().clone()
        else:
            aliases[name] = original
    try:
        save_file(kept, path, metadata={ALIASES: json.dumps(aliases)})
    except SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error
    # safetensors makes the file readable for its owner only, but a container runs as another user
    path.chmod(0o644)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights under all of their names.

    Raises:
        ValueError: if the file is truncated or not a safetensors file of a package, or weights hold NaN or infinity.
    """
    with reading(path, "a weights file of a package", "get the package again from its source"):
        with safe_open(path, "pt") as opened:
            # copied, as tensors of safetensors show the file, and change with it
            weights = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  (no mapping)
            aliases = json.loads((opened.metadata() or {})[ALIASES])
        weights |= {name: weights[original] for name, original in aliases.items()}
        check_finite(weights, path)
    return weights
