"""Memory that is freed and allocated again."""

import platform
import subprocess
import sys

import pytest

from nnunet_transformers.cpu import allocator

# the file alone, as its package imports torch, which takes seconds
PROGRAM = """
import resource, runpy, sys
import numpy as np
keep_freed_memory = runpy.run_path(sys.argv[1])["keep_freed_memory"]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(8_000_000) for _ in range(2)]  # 64 MB each
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
assert keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_kept_memory_is_not_mapped_again():
    output = subprocess.check_output([sys.executable, "-c", PROGRAM, allocator.__file__], text=True)
    mapped, kept = map(int, output.split())
    assert kept < mapped / 5
