"""The checkpoints that nnU-Net's trainers write, read without unpickling wherever that can be done."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

FINAL = "checkpoint_final.pth"
# PyTorch refuses to load anything where both are set
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
NEEDED = ("network_weights", "trainer_name", "init_args")


def _numpy_scalars() -> list[Any]:
    """What nnU-Net's checkpoints hold besides tensors and plain types: numbers of the training log."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_)
    # numpy 1 and 2 have the function under different names
    names = (f"numpy.{package}.multiarray.scalar" for package in ("core", "_core"))
    return [np.dtype, *((scalar, name) for name in names), *{type(np.dtype(number)) for number in numbers}]


@contextmanager
def reading_plain_types() -> Iterator[None]:
    """In here torch.load unpickles nothing but what nnU-Net's checkpoints hold, also where its caller wants more."""
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_checkpoint(path: Path, trust: bool = False) -> tuple[dict[str, Any], bool]:
    """Read a checkpoint that nnU-Net's trainer wrote.

    Args:
        path: of the checkpoint.
        trust: unpickle it if it cannot be read otherwise, which runs whatever code it holds.

    Returns:
        its content, and whether it was unpickled.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated or not a checkpoint, or would have to be unpickled and is not trusted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}; finish training with nnUNetv2_train, or choose others")
    unpickled = False
    try:
        with reading_plain_types():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise ValueError(f"{path} is truncated or not a checkpoint of nnU-Net's") from error
        if not trust:
            raise ValueError(
                f"{path} holds Python objects besides weights, which could run code when they are loaded. Give --trust "
                "only if you know who made it"
            ) from error
        content, unpickled = torch.load(path, map_location="cpu", weights_only=False), True
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise ValueError(f"{path} is truncated or not a checkpoint: {error}") from error
    if not isinstance(content, dict) or not set(NEEDED) <= set(content):
        raise ValueError(f"{path} is no checkpoint of nnU-Net's trainer, which has {', '.join(NEEDED)}")
    return content, unpickled
