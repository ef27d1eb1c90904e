"""Where a training step's time goes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from nnunet_transformers.benchmarking.machine import synchronise

from .rows import Row
from .training import TrainingStep

LARGEST = 12


def profile(row: Row) -> dict[str, Any]:
    """Profile one step.

    Returns:
        ``step_s`` of a step without the profiler; ``busy_s``, the sum over all kernels; ``kernels``, their number;
        ``operators`` and ``largest``, milliseconds and calls of those that take most, by operator and by kernel.
    """
    step = TrainingStep(row)
    for _ in range(1 if row.tiny else 3):
        step.run()
    synchronise(step.device)
    start = time.perf_counter()
    step.run()
    synchronise(step.device)
    seconds = time.perf_counter() - start
    on_device = row.device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with profiler(activities=activities) as profiled:
        step.run()
        synchronise(step.device)
    averages = profiled.key_averages()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    kernels = [e for e in averages if e.device_type == torch.autograd.DeviceType.CUDA]
    operators = [e for e in averages if e.device_type == torch.autograd.DeviceType.CPU]

    def table(events: list[Any]) -> list[dict[str, Any]]:
        largest = sorted(events, key=own, reverse=True)[:LARGEST]
        return [{"name": e.key[:120], "milliseconds": own(e) / 1e3, "calls": e.count} for e in largest]

    return {
        "patch_size": step.patch_size,
        "step_s": seconds,
        "busy_s": sum(map(own, kernels)) / 1e6,
        "kernels": sum(e.count for e in kernels),
        "operators": table(operators),
        "largest": table(kernels),
    }
