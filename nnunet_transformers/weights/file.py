"""Read weights from files without unpickling anything but tensors and plain types."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from .._atomic import replacing
from .._reading import RefusedError, reading
from .limits import check_archive, check_content, check_finite

# entries in which training frameworks store the state dict; "" is the file itself
STATE_DICT_KEYS = ("network_weights", "state_dict", "model", "model_state_dict", "student", "")
# PyTorch refuses to load anything where both are set
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class HoldsObjectsError(RefusedError):
    """Raised for a file with Python objects, which can only be read by unpickling and thus running their code."""


@contextmanager
def plain_types_only(allowed: Sequence[Any] = ()) -> Iterator[None]:
    """Make ``torch.load`` refuse all but tensors, plain types and ``allowed``, even with ``weights_only=False``.

    PyTorch's environment variables for this purpose have no effect inside.

    Args:
        allowed: classes and functions, as ``torch.serialization.safe_globals`` takes them.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(list(allowed)):
            yield
    finally:
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_plain_types(path: str | os.PathLike[str], allowed: Sequence[Any] = ()) -> Any:
    """Read a file of ``torch.save`` without unpickling other objects; all safe reading in this package calls it.

    The checksums are verified, and what the file claims is checked against its size (``limits``).

    Args:
        path: file to read.
        allowed: as ``plain_types_only`` takes it.

    Raises:
        OSError: if it cannot be opened.
        HoldsObjectsError: if it holds more than tensors, plain types and ``allowed``.
        ValueError: if it is truncated, damaged, not a checkpoint, or claims more than it holds.
    """
    with reading(path, "a checkpoint"), plain_types_only(allowed), Path(path).open("rb") as file:
        check_archive(file, path)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # the rest of PyTorch's message recommends weights_only=False
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
            if "unsupported" not in reason.lower():
                raise ValueError(reason) from error
            raise HoldsObjectsError(
                f"{path} holds Python objects besides weights, which could run code when they are loaded"
            ) from error
        check_content(content, path)
    return content


def check_file(path: str | os.PathLike[str]) -> None:
    """Check the checksums of a file of ``torch.save`` that another library will read, see ``check_archive``.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is truncated or damaged.
    """
    with reading(path, "a checkpoint"), Path(path).open("rb") as file:
        check_archive(file, path)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the state of a run, such as Lightning's ``last.ckpt``: a mapping of tensors and plain types.

    Raises:
        OSError: if it cannot be opened.
        ValueError: as ``read_plain_types``; also if it holds no mapping.
    """
    content = read_plain_types(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not the state of a run")
    return content


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint file of ``torch.save`` or safetensors.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is truncated, not a checkpoint, or holds objects that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        with reading(path, "a safetensors file"):
            # copied, as tensors of safetensors show the file, and change with it
            return {name: value.clone() for name, value in load_safetensors(path).items()}
    try:
        content = read_plain_types(path)
    except HoldsObjectsError as error:
        raise ValueError(
            f"{error}; refused. Where you trust its origin, save its state dict alone with torch.save and use that file"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file, from the first of ``STATE_DICT_KEYS`` that holds one.

    Raises:
        FileNotFoundError, ValueError: as ``load_checkpoint``; ValueError also if there is no state dict, or one with
            NaN or infinity.
    """
    content = load_checkpoint(path)
    for key in STATE_DICT_KEYS:
        candidate = content.get(key) if key else content
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            check_finite(candidate, path)
            return dict(candidate)
    raise ValueError(f"{path} holds no state dict; it has {', '.join(map(str, list(content)[:8]))}")


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint file whole or not at all.

    Raises:
        OSError: if it cannot be written; an existing file is then unchanged.
    """
    try:
        with replacing(path) as partial:
            torch.save(dict(content), partial)
    except (OSError, RuntimeError) as error:
        raise OSError(f"could not write {path}: {error}") from error
