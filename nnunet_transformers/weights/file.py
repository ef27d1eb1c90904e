"""Read weights from files without unpickling anything but tensors, plain types and what becomes such."""

from __future__ import annotations

import os
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .._atomic import replacing
from .._reading import RefusedError, first_line, reading
from .._text import printable
from .layout import find_state_dicts
from .limits import check_archive, check_content, check_finite
from .named import UnknownProtocolError, is_plain_name, names_in
from .restricted import INERT, NotInertError, as_plain
from .safetensors_file import SUFFIX, read_safetensors, write_safetensors
from .shards import find_index, read_shards

# PyTorch refuses to load anything where both are set
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# entry of a checkpoint that holds the weights, as in nnU-Net's
WEIGHTS = "network_weights"
# names of classes in a message, and letters of each
SHOWN_NAMES, SHOWN_LETTERS = 3, 80


class HoldsObjectsError(RefusedError):
    """Raised for a file with Python objects, which can only be read by unpickling and thus running their code."""


@contextmanager
def plain_types_only(allowed: Sequence[Any] = ()) -> Iterator[None]:
    """Make ``torch.load`` refuse all but tensors, plain types and ``allowed``, even with ``weights_only=False``.

    PyTorch's environment variables for this purpose have no effect inside, nor what other code has declared safe.

    Args:
        allowed: classes and functions, as ``torch.serialization.safe_globals`` takes them.
    """
    declared = torch.serialization.get_safe_globals()
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(allowed))
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(declared)
        del os.environ[FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_plain_types(path: str | os.PathLike[str], inert: bool = False) -> Any:
    """Read a file of ``torch.save`` without unpickling other objects; all safe reading in this package calls it.

    The checksums are verified, and what the file claims is checked against its size (``limits``).

    Args:
        path: file to read.
        inert: also accept what files of others hold besides weights, such as arguments of a training, and turn it into
            plain types; ``restricted`` has the list.

    Raises:
        OSError: if it cannot be opened.
        HoldsObjectsError: if it holds more than that.
        ValueError: if it is truncated, damaged, not a checkpoint, or claims more than it holds.
    """
    allowed = INERT if inert else ()
    with reading(path, "a checkpoint"), plain_types_only(allowed), Path(path).open("rb") as file:
        check_archive(file, path)
        try:
            _check_names(file, {name for _, name in allowed})
            content = torch.load(file, map_location="cpu", weights_only=True)
            if inert:
                content = as_plain(content, Path(path).stat().st_size)
        except (NotInertError, UnknownProtocolError) as error:
            raise HoldsObjectsError(
                f"{path} holds {first_line(error)} besides weights and plain types, which could run code when loaded"
            ) from error
        except pickle.UnpicklingError as error:
            # the rest of PyTorch's message recommends weights_only=False
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
            raise ValueError(reason) from error
        check_content(content, path)
    return content


def _check_names(file: IO[bytes], allowed: Collection[str]) -> None:
    """Check which classes and functions a file names, before anything is made of it.

    Raises:
        NotInertError: names those that are neither allowed nor of tensors and plain types.
    """
    names = [name for name in names_in(file) if name not in allowed and not is_plain_name(name)]
    if names:
        shown = ", ".join(printable(name)[:SHOWN_LETTERS] for name in names[:SHOWN_NAMES])
        raise NotInertError(f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown)


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
    """Read a checkpoint: a file of ``torch.save`` or safetensors, or several that an index names.

    Args:
        path: the file. Weights in shards are read whole, by their index, their folder or any of them (``shards``).

    Raises:
        FileNotFoundError: if the file, or the index or another shard of the same weights, does not exist.
        ValueError: if it is truncated, not a checkpoint, or holds objects that would have to be unpickled; also if an
            index and its shards disagree.
    """
    path = Path(path)
    index = find_index(path)
    if index is not None:
        return read_shards(index, _read_file)
    if not path.is_file():
        where = "a folder, not a checkpoint; name the file in it" if path.is_dir() else "no such checkpoint"
        raise FileNotFoundError(f"{where}: {path}")
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Any]:
    """Read one file; errors as for ``load_checkpoint``."""
    if path.suffix == SUFFIX:
        return read_safetensors(path, WEIGHTS)
    try:
        content = read_plain_types(path, inert=True)
    except HoldsObjectsError as error:
        raise ValueError(
            f"{error}; refused. Where you trust its origin, save its state dict alone with torch.save and use that file"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file, the first that ``layout.find_state_dicts`` finds.

    Raises:
        FileNotFoundError, ValueError: as ``load_checkpoint``; ValueError also if there is no state dict, or one with
            NaN or infinity.
    """
    content = load_checkpoint(path)
    for _, weights in find_state_dicts(content):
        check_finite(weights, path)
        return weights
    raise ValueError(f"{path} holds no state dict; it has {', '.join(map(str, list(content)[:8]))}")


def save_checkpoint(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint file whole or not at all, by ``torch.save`` or, if the path ends so, as safetensors.

    Raises:
        OSError: if it cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    try:
        if path.suffix == SUFFIX:
            return write_safetensors(content, path, WEIGHTS)
        with replacing(path) as partial:
            torch.save(dict(content), partial)
    except (OSError, RuntimeError) as error:
        raise OSError(f"could not write {path}: {error}") from error
