"""How far the planner's memory estimate is from what a training step takes, on CPU in float32.

    python benchmarks/memory.py

The estimate runs the network on tensors without data; the measurement is the growth of the process's peak resident
memory over one real step, in a fresh process each.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from nnunet_transformers.architectures import create_network
from nnunet_transformers.cpu import use_kernels
from nnunet_transformers.plans.memory import training_peak_bytes

CASES: list[tuple[str, int, int, tuple[int, ...], dict[str, Any]]] = [
    ("qt_unet_tiny", 1, 14, (96, 96, 96), {}),
    ("qt_unet_tiny", 1, 14, (96, 96, 96), {"window_sizes": 6, "norm_placement": "pre"}),
    ("qt_unet_base", 1, 14, (96, 96, 96), {"window_sizes": 6, "norm_placement": "pre"}),
    ("qt_unet_tiny", 4, 4, (128, 128, 128), {"window_sizes": (8, 8, 8, 4), "norm_placement": "pre"}),
    ("unet2022_tiny", 1, 14, (96, 96, 96), {}),
    ("unet2022_tiny", 1, 9, (320, 320), {}),
    ("mit_7", 1, 14, (96, 96, 96), {}),
    ("qt_unet_tiny", 3, 3, (512, 512), {"window_sizes": 16, "norm_placement": "pre"}),
    ("setr_pup", 1, 2, (512, 512), {}),
    ("resnet50_unet", 1, 2, (512, 512), {}),
]


def build(name, channels, classes, patch_size, overrides):
    return create_network(name, channels, classes, patch_size, deep_supervision=True, **overrides)


def measure(name, channels, classes, patch_size, overrides):
    network = use_kernels(build(name, channels, classes, patch_size, overrides))
    image = torch.randn(1, channels, *patch_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outputs = network(image)
    loss = sum(
        F.cross_entropy(o, torch.zeros(o.shape[0], *o.shape[2:], dtype=torch.long)) - o.softmax(1).mean()
        for o in outputs
    )
    loss.backward()
    gradients = 4 * sum(p.numel() for p in network.parameters())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before - gradients


def main() -> None:
    if len(sys.argv) > 1:
        print(measure(*CASES[int(sys.argv[1])]))
        return
    for index, case in enumerate(CASES):
        name, channels, _, patch_size, overrides = case
        measured = int(subprocess.check_output([sys.executable, __file__, str(index)], text=True).split()[-1])
        network = partial(build, *case)
        _, estimate = training_peak_bytes(network, channels, patch_size, batch_size=1, mixed_precision=False)
        row = {"network": name, "patch": patch_size, **overrides, "estimate_GB": round(estimate / 1e9, 2)}
        row |= {"measured_GB": round(measured / 1e9, 2), "estimate_over_measured": round(estimate / measured, 2)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
