"""Read checkpoints of nnU-Net's trainers, without unpickling wherever possible."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from .._reading import reading
from .file import HoldsObjectsError, plain_types_only, read_plain_types
from .limits import check_finite
from .restricted import INERT

FINAL = "checkpoint_final.pth"
NEEDED = ("network_weights", "trainer_name", "init_args")


def reading_plain_types() -> AbstractContextManager[None]:
    """Make ``torch.load`` accept only weights, plain types and inert data, even with ``weights_only=False``.

    The training logs of nnU-Net's checkpoints hold NumPy scalars.
    """
    return plain_types_only(INERT)


def read_checkpoint(path: Path, trust: bool = False) -> tuple[dict[str, Any], bool]:
    """Read a checkpoint of an nnU-Net trainer.

    Args:
        path: file to read.
        trust: unpickle the file if it cannot be read otherwise, which runs any code in it.

    Returns:
        the content, and whether it was unpickled.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, damaged or not a checkpoint, its weights hold NaN or infinity, or it would have
            to be unpickled and is not trusted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; finish training with nnUNetv2_train, or choose others")
    unpickled = False
    try:
        content = read_plain_types(path, inert=True)
    except HoldsObjectsError as error:
        if not trust:
            raise ValueError(f"{error}. Give --trust only if you know who made it") from error
        with reading(path, "a checkpoint"):
            content, unpickled = torch.load(path, map_location="cpu", weights_only=False), True
    if not isinstance(content, dict) or not set(NEEDED) <= set(content):
        raise ValueError(f"{path} is no checkpoint of nnU-Net's trainer, which has {', '.join(NEEDED)}")
    weights = content["network_weights"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no weights: its network_weights are not tensors by name")
    check_finite(weights, path)
    return content, unpickled
