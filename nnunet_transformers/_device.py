"""The device that a command or a loaded model uses: one rule for all."""

from __future__ import annotations

import torch

AUTO = "auto"


def find_device(name: str, option: str = "--device") -> torch.device:
    """Return a device by its name.

    Args:
        name: cuda, cuda:1 and so on, cpu, mps, or auto for cuda if it is available and cpu otherwise.
        option: what the user gave it as, for the message.

    Raises:
        ValueError: if the device is not available.
    """
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == AUTO:
        name = "cuda" if is_there["cuda"] else "cpu"
    kind, colon, index = name.partition(":")
    number = torch.cuda.device_count() if kind == "cuda" else 1
    is_numbered = not colon or (index.isdecimal() and int(index) < number)
    if is_there.get(kind, False) and not is_numbered:
        present = f"{kind}:0" + (f" to {kind}:{number - 1}" if number > 1 else "")
        raise ValueError(f"{option} {name} is not available; this machine has {present}")
    if not is_there.get(kind, False):
        present = ", ".join(device for device, is_present in is_there.items() if is_present)
        raise ValueError(f"{option} {name} is not available; this machine has {present}")
    return torch.device(name)


def no_gpu(name: str, device: torch.device) -> str:
    """Return the line that a command prints where ``auto`` has found no GPU; empty otherwise."""
    return "no GPU: this runs on the CPU" if name == AUTO and device.type == "cpu" else ""
