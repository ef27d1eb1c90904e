"""Limits on what a weight file claims, from its headers before its content, and what its checksums tell."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn

from .._reading import RefusedError

ZIP_START = b"PK\x03\x04"
# attribute of MS-DOS, by which PyTorch's reader knows folders
FOLDER = 0x10
# times that the tensors of a file may share its bytes: nnU-Net's state dicts list most tensors under four names
MAX_SHARING = 32
# values that nested content may expand to; shared lists would let a small file expand without end
MAX_VALUES = 1_000_000


def check_archive(file: IO[bytes], path: str | os.PathLike[str]) -> None:
    """Check the zip archive of a file of ``torch.save``: nothing is compressed, and the checksums are right.

    PyTorch compares no checksums and loads damaged weights. Files of PyTorch before 1.6, which are no archives, and
    files saved with ``torch.serialization.set_crc32_options(False)`` have none, so that nothing can be known.

    Args:
        file: the open file; it is left at its beginning.
        path: its path, for messages.

    Raises:
        RefusedError: if an entry is compressed, larger than the file or damaged.
        Exception: whatever ``zipfile`` raises for a damaged archive, to be translated by ``reading``.
    """
    file.seek(0)
    if file.read(len(ZIP_START)) == ZIP_START:
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise RefusedError(
                    f"{path} is compressed and claims {claimed} bytes, but torch.save never compresses; refused. Where "
                    "you trust its origin, load it and save it again"
                )
            if claimed > size:
                raise RefusedError(f"{path} is damaged: its entries claim {claimed} bytes, the file has {size}")
            # PyTorch reads nothing from a folder's entry and returns whatever is in memory
            damaged = next((entry.filename for entry in entries if entry.external_attr & FOLDER), None)
            if damaged is None and any(entry.CRC for entry in entries):
                damaged = archive.testzip()
            if damaged is not None:
                raise RefusedError(
                    f"{path} is damaged: {damaged!r} is not as it was written; get it again from its source"
                )
    file.seek(0)


def check_content(content: Any, path: str | os.PathLike[str]) -> None:
    """Check that the loaded content of a file is no larger than the file: a tensor of stride 0 can claim terabytes.

    Args:
        content: nested mappings and sequences of tensors and plain types.
        path: the file.

    Raises:
        RefusedError: if tensors claim more than the file holds or are not plain ones on the CPU, or nested content
            expands to too many values.
        ValueError, RecursionError: if it contains itself or is nested too deeply, to be translated by ``reading``.
    """
    tensors: list[Tensor] = []
    if _expanded(content, tensors, {}) > MAX_VALUES:
        raise RefusedError(f"{path} expands to more than {MAX_VALUES} values, which no checkpoint has; refused")
    for tensor in tensors:
        if not _is_plain(tensor):
            raise RefusedError(f"{path} holds a tensor that is not a plain one ({tensor.layout}, {tensor.device})")
    size = os.stat(path).st_size
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    claimed, held = sum(tensor.nbytes for tensor in tensors), sum(storages.values())
    if claimed > MAX_SHARING * held or held > size:
        raise RefusedError(
            f"{path} is damaged or forged: its tensors claim {claimed} bytes, it holds {min(held, size)}"
        )


def check_finite(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Check that weights have neither NaN nor infinity: of a damaged file, or of a training that diverged.

    Args:
        weights: weights by name.
        path: their file, for messages.

    Raises:
        RefusedError: names the first such tensor.
    """
    for name, value in weights.items():
        # PyTorch cannot test 8-bit floats
        tested = value.float() if value.is_floating_point() and value.element_size() == 1 else value
        # single numbers, such as the lowest loss so far, begin at infinity
        is_sound = torch.isfinite(tested).all() if value.dim() else not torch.isnan(tested)
        if not is_sound:
            raise RefusedError(
                f"{path} is damaged, or of a training that diverged: {name} holds NaN or infinity; get it again, or "
                "take another checkpoint"
            )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        # views whose bytes differ from their values
        and not tensor.is_neg()
        and not tensor.is_conj()
    )


def _expanded(value: Any, tensors: list[Tensor], counted: dict[int, int]) -> int:
    """Count the values that nested content expands to, and collect its tensors.

    Args:
        value: the content.
        tensors: receives every tensor once for each name.
        counted: counts of containers seen before, by id; 0 marks those that are not finished and so contain themselves.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
    if not isinstance(value, (Mapping, list, tuple, set)):
        return 1
    if counted.get(id(value)) == 0:
        raise ValueError("its content contains itself")
    if id(value) not in counted:
        counted[id(value)] = 0
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        counted[id(value)] = 1 + sum(_expanded(item, tensors, counted) for item in inner)
    return counted[id(value)]
