"""Memory of a loader: what its workers hold ready, known before the run and kept within what is free."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..._memory import available_bytes
from ..._processes import available_cores
from .epoch_samples import Epoch

# batches that a worker prepares ahead, PyTorch's default
PREFETCH = 2
# batches besides those of the workers: in use, and its copy in pinned memory
IN_USE = 2
# share of the free memory that batches may take; the rest is for volumes that are read, and for the network on a CPU
SHARE = 0.5
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class LoaderMemory:
    """How many batches a loader holds.

    Attributes:
        workers: processes that read.
        prefetch: batches that each prepares ahead.
        bytes: memory of all batches.
    """

    workers: int
    prefetch: int
    bytes: int

    @classmethod
    def within(cls, batch_bytes: int, workers: int, free: int | None) -> LoaderMemory:
        """Take as many of the wanted workers as fit into a share of the free memory, each with fewer batches first.

        Args:
            batch_bytes: bytes of a batch.
            workers: wanted number of workers.
            free: free memory in bytes; None if unknown, which bounds nothing.

        Examples:
            >>> LoaderMemory.within(10**9, 8, 20 * 10**9)
            LoaderMemory(workers=8, prefetch=1, bytes=10000000000)
        """
        prefetch = PREFETCH
        while workers and free is not None and batch_bytes * (workers * prefetch + IN_USE) > SHARE * free:
            if prefetch > 1:
                prefetch -= 1
            else:
                workers -= 1
        return cls(workers, prefetch, batch_bytes * (workers * prefetch + IN_USE))

    def options(self) -> dict[str, int]:
        """Return the arguments of PyTorch's ``DataLoader``."""
        return {"num_workers": self.workers, **({"prefetch_factor": self.prefetch} if self.workers else {})}


def loader_memory(samples: Epoch, batch_size: int, workers: int, processes: int) -> tuple[LoaderMemory, str]:
    """Bound the memory of a loader, by the size of its first sample.

    Args:
        samples: what is loaded.
        batch_size: samples per batch.
        workers: wanted number of workers.
        processes: processes of the run on this machine, which share its memory.

    Returns:
        the bound, and a line that states it.
    """
    size = batch_size * bytes_of(_first(samples))
    free = _free(workers)
    found = LoaderMemory.within(size, workers, None if free is None else free // processes)
    line = (
        f"loader: at most {found.bytes / 1e9:.2f} GB of batches in each process, of {size / 1e6:.1f} MB, "
        f"{found.workers} workers with {found.prefetch} each and {IN_USE} in use"
    )
    if free is not None and (found.workers, found.prefetch) != (workers, PREFETCH):
        line += (
            f"; {workers} workers with {PREFETCH} each would take more than {SHARE:.0%} of the {free / 1e9:.1f} GB "
            "that are free"
        )
    if found.workers > (cores := available_cores()):
        line += f"; {cores} cores, which more workers may slow: --data.init_args.num_workers {cores}"
    return found, line


def bytes_of(sample: Any) -> int:
    """Return the bytes of the tensors and arrays of a sample."""
    if isinstance(sample, torch.Tensor):
        return sample.numel() * sample.element_size()
    if isinstance(sample, np.ndarray):
        return sample.nbytes
    if isinstance(sample, Mapping):
        return sum(map(bytes_of, sample.values()))
    if isinstance(sample, Sequence) and not isinstance(sample, (str, bytes)):
        return sum(map(bytes_of, sample))
    return 0


def _first(samples: Epoch) -> Any:
    """Draw the first sample, and leave the global random numbers as they were."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            return samples[0]
    finally:
        np.random.set_state(state)


def _free(workers: int) -> int | None:
    """Return the free memory, with workers within that of the shared memory through which they pass batches."""
    known = [available_bytes()]
    if workers and os.path.isdir(SHARED_MEMORY):
        stat = os.statvfs(SHARED_MEMORY)
        known.append(stat.f_bavail * stat.f_frsize)
    return min((free for free in known if free is not None), default=None)
