"""The C library's allocator, for training and prediction on CPU."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed arrays for later ones, until the process ends.

    By default glibc maps every array above 32 MiB anew, and the system zeroes each of its pages at first touch, which
    takes a tenth to a third of a training step on CPU (benchmarks/NOTES.md). Afterwards the process keeps its peak
    memory, which is a tenth higher than before.

    Returns:
        whether the C library is glibc; nothing changes with another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(set_option(M_MMAP_MAX, 0)) and bool(set_option(M_TRIM_THRESHOLD, NEVER))
