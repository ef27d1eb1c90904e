"""The C library's allocator, for training and prediction on CPU."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed arrays for later ones, until the process ends.

    By default glibc maps every array above 32 MiB anew, and the system zeroes each of its pages at first touch, which
    takes a tenth to a third of a training step on CPU (benchmarks/NOTES.md). Afterwards the process keeps its peak
    memory, which is a tenth higher than before, and grows further where the sizes of arrays differ from image to image:
    call ``release_freed_memory`` between them.

    Returns:
        whether the C library is glibc; nothing changes with another one.
    """
    set_option = _function("mallopt")
    return set_option is not None and bool(set_option(M_MMAP_MAX, 0)) and bool(set_option(M_TRIM_THRESHOLD, NEVER))


def release_freed_memory() -> None:
    """Give the memory of freed arrays back to the system, if the C library is glibc."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    """Return a function of glibc's; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
