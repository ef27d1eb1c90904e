"""Reading weights from files without unpickling anything but tensors and plain types."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from .._atomic import replacing

# where training frameworks keep the state dict; "" is the file itself
STATE_DICT_KEYS = ("network_weights", "state_dict", "model", "model_state_dict", "student", "")


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, not a checkpoint, or holds objects that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "unsupported" in str(error).lower():
            raise ValueError(
                f"{path} holds Python objects besides weights, which could run code when they are loaded; refused. "
                "Where you trust its origin, save its state dict alone with torch.save and use that file"
            ) from error
        raise ValueError(f"{path} is truncated or not a checkpoint: {error}") from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is truncated or not a checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, wherever in it they are.

    Raises:
        FileNotFoundError, ValueError: as ``load_checkpoint``; ValueError also if there are no weights in it.
    """
    content = load_checkpoint(path)
    for key in STATE_DICT_KEYS:
        candidate = content.get(key) if key else content
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return dict(candidate)
    raise ValueError(f"{path} holds no state dict; it has {', '.join(map(str, list(content)[:8]))}")


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    try:
        with replacing(path) as partial:
            torch.save(dict(content), partial)
    except (OSError, RuntimeError) as error:
        raise OSError(f"could not write {path}: {error}") from error
