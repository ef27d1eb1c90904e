"""Describe the environment of a measurement: processor, GPU, threads and versions."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("nnunet-transformers", "nnunetv2", "dynamic-network-architectures", "monai", "timm")


def processor_name() -> str:
    """Return the processor's model name; its architecture if the system does not report the name."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Describe processor, threads, on CUDA the GPU, and versions of Python, PyTorch and the networks' packages."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # MONAI is optional, and a checkout on the path has no version
            continue
    described: dict[str, Any] = {"processor": processor_name(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {**described, "versions": versions}
