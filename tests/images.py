"""Images with forged headers."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

SHAPE = slice(40, 56)


def claim(path: Path, size: Sequence[int]) -> None:
    """Let the header of a NIfTI file claim voxels per axis that it does not have."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:
        content = bytearray(file.read())
    content[SHAPE] = struct.pack("<8h", len(size), *size, *(1,) * (7 - len(size)))
    with opened(path, "wb") as file:
        file.write(content)
