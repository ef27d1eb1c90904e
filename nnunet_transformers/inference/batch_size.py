"""How many patches go through the network in a pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

# Voxels of a pass on a CPU: up to here passes of several patches were faster, beyond it they were not or were slower
# (benchmarks/NOTES.md, Inference)
CPU_VOXELS = 2**17
# Voxels of a pass on a GPU: with 64 features at full resolution half of what indices of 32 bits reach
GPU_VOXELS = 2**24
# Share of the free memory of a GPU that a pass may take; kernels' workspaces do not grow evenly with the batch
GPU_SHARE = 0.8


def fitting_batch_size(patch_size: Sequence[int], bytes_per_patch: int, free_bytes: int) -> int:
    """Patches in a pass on a GPU, at least one.

    Args:
        patch_size: voxels per axis.
        bytes_per_patch: that a pass of one patch takes at its peak.
        free_bytes: of the GPU's memory.
    """
    fits = int(GPU_SHARE * free_bytes) // max(1, bytes_per_patch)
    return max(1, min(fits, GPU_VOXELS // prod(patch_size)))


def cpu_batch_size(patch_size: Sequence[int]) -> int:
    """Patches in a pass on a CPU: several small ones, such as slices of 128x128, or one larger one."""
    return max(1, CPU_VOXELS // prod(patch_size))


def bytes_of_pass(network: nn.Module, patch: Tensor) -> int:
    """Memory that a pass takes at its peak on a CUDA device, measured in the second of two.

    Args:
        network: on that device, without what torch.compile wraps around it.
        patch: (1, channels, *patch_size) there.
    """
    network(patch)  # cuDNN tries its kernels in the first pass, and some take far more memory
    before = torch.cuda.memory_allocated(patch.device)
    torch.cuda.reset_peak_memory_stats(patch.device)
    logits = network(patch)
    # those of a pass are still in use while the next one runs
    return torch.cuda.max_memory_allocated(patch.device) - before + logits.nbytes


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that is free, with what torch keeps for later."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
