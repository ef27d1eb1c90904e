"""The C library's allocator, for training and prediction on CPU."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed arrays for later ones, until the process ends.

    By default glibc maps each array above 32 MiB anew, and the system zeroes every page of it at first touch: a tenth
    to a third of the time of a training step on CPU (benchmarks/NOTES.md). The process then holds its peak memory,
    which is a tenth higher than before.

    Returns:
        whether the C library has such an allocator; without one nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(set_option(M_MMAP_MAX, 0)) and bool(set_option(M_TRIM_THRESHOLD, NEVER))
