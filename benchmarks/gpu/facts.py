"""What the device is."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict
from typing import Any

import torch

from nnunet_transformers.benchmarking.environment import describe_environment
from nnunet_transformers.benchmarking.machine import measure_rates

from .rows import Row

QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu,mig.mode.current"
)


def facts(row: Row) -> dict[str, Any]:
    """Describe the device, and measure its rates in float16 and float32 with and without TF32."""
    device = torch.device(row.device)
    described = {**describe_environment(device), "cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "bytes": properties.total_memory,
            "devices": torch.cuda.device_count(),
            "architectures": torch.cuda.get_arch_list(),
            "driver": _driver(),
        }
    if not row.tiny:
        described["rates"] = {
            name: asdict(measure_rates(device, dtype))
            for name, dtype in {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}.items()
        }
    return described


def _driver() -> dict[str, str]:
    """Driver, memory and clocks by ``nvidia-smi``, empty where it is not at hand."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return {}
    return dict(zip(QUERY.split(","), map(str.strip, answer.split(",")), strict=False))
