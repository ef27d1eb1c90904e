"""Choose the number of patches per forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

# voxels per pass on a CPU: up to this number batches of patches were faster, beyond it equal or slower
# (benchmarks/NOTES.md, Inference)
CPU_VOXELS = 2**17
# voxels per pass on a GPU: 64 features at full resolution then take half the range of 32-bit indices
GPU_VOXELS = 2**24
# share of a GPU's free memory that a pass may take; the kernels' workspaces do not grow in proportion to the batch
GPU_SHARE = 0.8


def fitting_batch_size(patch_size: Sequence[int], bytes_per_patch: int, free_bytes: int) -> int:
    """Return the number of patches per pass on a GPU, at least one.

    Args:
        patch_size: voxels per axis.
        bytes_per_patch: peak memory of a pass of one patch, in bytes.
        free_bytes: free memory of the GPU, in bytes.
    """
    fits = int(GPU_SHARE * free_bytes) // max(1, bytes_per_patch)
    return max(1, min(fits, GPU_VOXELS // prod(patch_size)))


def cpu_batch_size(patch_size: Sequence[int]) -> int:
    """Return the number of patches per pass on a CPU: several small ones, such as slices of 128x128, or one volume."""
    return max(1, CPU_VOXELS // prod(patch_size))


def bytes_of_pass(network: nn.Module, patch: Tensor) -> int:
    """Measure the peak memory in bytes of a forward pass on a CUDA device, in the second of two passes.

    Args:
        network: network on that device, not wrapped by ``torch.compile``.
        patch: (1, channels, *patch_size) on that device.
    """
    network(patch)  # cuDNN tries its kernels in the first pass, and some take far more memory
    before = torch.cuda.memory_allocated(patch.device)
    torch.cuda.reset_peak_memory_stats(patch.device)
    logits = network(patch)
    # the logits of a pass are still in use during the next one
    return torch.cuda.max_memory_allocated(patch.device) - before + logits.nbytes


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA device in bytes, including the free part of torch's cache."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
