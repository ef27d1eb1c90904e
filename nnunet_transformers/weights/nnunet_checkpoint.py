"""Read checkpoints of nnU-Net's trainers, without unpickling wherever possible."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._reading import reading
from .file import HoldsObjectsError, plain_types_only, read_plain_types
from .limits import check_finite

FINAL = "checkpoint_final.pth"
NEEDED = ("network_weights", "trainer_name", "init_args")


def _numpy_scalars() -> list[Any]:
    """Return the types that nnU-Net's checkpoints hold besides tensors and plain types, in the training log."""
    scalar: Any = np.float64(0).__reduce__()[0]
    types = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
    # numpy 1 and 2 have the function under different names
    names = (f"numpy.{package}.multiarray.scalar" for package in ("core", "_core"))
    return [np.dtype, *((scalar, name) for name in names), *{type(np.dtype(t)) for t in types}]


def reading_plain_types() -> AbstractContextManager[None]:
    """Make ``torch.load`` accept only what nnU-Net's checkpoints hold, even with ``weights_only=False``."""
    return plain_types_only(_numpy_scalars())


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
        content = read_plain_types(path, _numpy_scalars())
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
