"""The C library's allocator, for training and prediction on CPU."""

from __future__ import annotations

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1


def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed arrays for the next ones, for as long as the process lives.

    As it is, each array above 32 MiB is mapped anew, and the system fills every page of it with zeros at first touch:
    a tenth to a third of the time of a training step on CPU (benchmarks/NOTES.md). The process then keeps the most
    memory that it has had, a tenth more than before.

    Returns:
        whether there is such an allocator; where there is none nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(set_option(M_MMAP_MAX, 0)) and bool(set_option(M_TRIM_THRESHOLD, NEVER))
