"""Checkpoints as safetensors files: tensors, and the description as JSON in the file's own metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .._atomic import replacing
from .._reading import reading

SUFFIX = ".safetensors"
# entry of the file's metadata, a mapping of texts
METADATA = "nnunet_transformers"
HASH_LETTERS = 64


def read_safetensors(path: Path, weights: str) -> dict[str, Any]:
    """Read a file's tensors by name, or the checkpoint that ``write_safetensors`` wrote.

    Args:
        path: file to read.
        weights: entry of the checkpoint that the tensors become.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is truncated, no safetensors file, or has another description.
    """
    with reading(path, "a safetensors file"):
        # copied, as tensors of safetensors show the file, and change with it
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if METADATA not in metadata:
            # a sealed checkpoint must not pass for bare tensors where the entry's name is damaged
            if any(value[HASH_LETTERS:].startswith(" {") for value in metadata.values()):
                raise ValueError("its metadata is damaged")
            return tensors
        if not _is_description(metadata[METADATA]):
            raise ValueError("its description is damaged")
        content = json.loads(metadata[METADATA].partition(" ")[2])
        if not isinstance(content, dict) or weights in content:
            raise TypeError("its description is not that of a checkpoint")
    return {**content, weights: tensors}


def write_safetensors(content: Mapping[str, Any], path: Path, weights: str) -> None:
    """Write a checkpoint, whole or not at all; a tensor with several names is stored under each of them.

    Args:
        content: tensors in the entry ``weights``, plain types in the others.
        path: file to write.
        weights: name of that entry.

    Raises:
        OSError: if it cannot be written.
        TypeError: if another entry holds more than plain types.
    """
    description = _described(json.dumps({name: value for name, value in content.items() if name != weights}))
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in content[weights].items()}
    with replacing(path) as partial:
        mode = partial.stat().st_mode
        try:
            # one entry: safetensors writes several in any order, and equal checkpoints should be equal files
            save_file(tensors, partial, {METADATA: description})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # safetensors makes the file readable for its owner only, whatever the user's umask
        partial.chmod(mode)


def _described(text: str) -> str:
    """Put the hash of a description before it: its readers look for entries, and miss those with a damaged name."""
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def _is_description(value: str) -> bool:
    return value == _described(value.partition(" ")[2])
