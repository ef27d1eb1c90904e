"""The planner's estimate of a training step's memory beside the measured peak."""

from __future__ import annotations

from typing import Any

import torch

from nnunet_transformers.architectures import create_network
from nnunet_transformers.plans.memory import training_peak_bytes

from .rows import NUM_CLASSES, Row, arguments_of
from .training import TrainingStep


def estimate(row: Row) -> dict[str, Any]:
    """Estimate as the planner does: ``static_bytes`` with CUDA's own, and ``peak_bytes`` of everything else."""
    arguments = dict(arguments_of(row))
    patch_size = arguments.pop("patch_size")
    static, peak = training_peak_bytes(
        lambda: create_network(row.network, 1, NUM_CLASSES, patch_size, deep_supervision=True, **arguments),
        1,
        patch_size,
        row.batch_size,
    )
    return {"estimated_static_bytes": static, "estimated_peak_bytes": peak, "estimated_bytes": static + peak}


def memory(row: Row) -> dict[str, Any]:
    """Measure three steps, of which cuDNN tries its kernels in the first.

    Returns:
        ``allocated_bytes``, the peak after the first step; ``first_bytes``, that of the first; ``reserved_bytes``, the
        peak of PyTorch's cache; ``own_bytes``, what CUDA and its libraries take outside of it; ``static_bytes``,
        allocated between two steps, with gradients; all 0 on a CPU.
    """
    step = TrainingStep(row)
    step.run()
    first = step.peak_bytes()
    figures = {"patch_size": step.patch_size, "batch_size": row.batch_size, "first_bytes": first}
    if row.device != "cuda":
        return {**figures, "allocated_bytes": 0, "reserved_bytes": 0, "own_bytes": 0, "static_bytes": 0}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step.run()
    free, total = torch.cuda.mem_get_info()
    step.loss = None
    return {
        **figures,
        "allocated_bytes": step.peak_bytes(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "own_bytes": total - free - torch.cuda.memory_reserved(),
        "static_bytes": torch.cuda.memory_allocated(),
    }
