"""Memory that is freed and allocated again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from nnunet_transformers.cpu.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8_000_000) for _ in range(2)]  # 64 MB each
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_not_mapped_again():
    mapped, kept = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True)) for how in ("map", "keep")
    )
    assert kept < mapped / 5
