"""Samples a second of nnU-Net's augmentation on one core, and the cores that a training step would need.

    python benchmarks/augmentation.py [--seconds 20] [--gpu benchmarks/results/gpu/gpu.json]

A sample is a crop in memory, to which nnU-Net's training transforms are applied as its loader does, in one thread;
reading from disk comes on top. With the results of `python -m benchmarks.gpu`, each network's rate is divided by it:
where that is more than the machine's cores, or nnU-Net's processes (`nnUNet_n_proc_DA`, 12 by default), the GPU waits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers._atomic import write_json
from nnunet_transformers.benchmarking.environment import processor_name

# nnU-Net's usual patches, isotropic
PATCHES = ((128, 128, 128), (96, 96, 96), (64, 192, 160), (512, 512), (320, 320), (256, 256))
# scales of deep supervision
LEVELS = 5
PROCESSES = 12


def transforms_of(patch_size: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """nnU-Net's training transforms of isotropic images, and the crop that they take."""
    degrees = 30 if len(patch_size) == 3 else 15 if max(patch_size) / min(patch_size) > 1.5 else 180
    rotation: RandomScalar = (-np.deg2rad(degrees), np.deg2rad(degrees))
    crop = get_patch_size(patch_size, rotation, rotation, rotation, (0.85, 1.25))
    scales = [[1 / 2**level] * len(patch_size) for level in range(LEVELS)]
    axes = tuple(range(len(patch_size)))
    transforms = nnUNetTrainer.get_training_transforms(patch_size, rotation, scales, axes, False)
    return transforms, tuple(int(n) for n in crop)


def measure(patch_size: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Time single samples, which differ as each transform is applied by chance."""
    transforms, crop = transforms_of(patch_size)
    image = torch.randn(1, *crop)
    labels = torch.randint(0, 3, (1, *crop), dtype=torch.int16)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        # processes that share the machine take turns, so the time on the processor counts
        start = time.process_time()
        transforms(image=image.clone(), segmentation=labels.clone())
        times.append(time.process_time() - start)
    own = times[1:]
    return {"patch_size": patch_size, "crop": crop, "samples": len(own), "samples_per_s": 1 / mean(own)}


def needed(rows: list[dict[str, Any]], gpu: Path) -> list[dict[str, Any]]:
    """Cores that keep up with each network's training step on a measured GPU."""
    rates = {tuple(row["patch_size"]): row["samples_per_s"] for row in rows}
    steps = [row for row in json.loads(gpu.read_text()).values() if "samples_per_s" in row]
    return [
        {
            "network": row["network"],
            "patch_size": row["patch_size"],
            "precision": row["precision"],
            "step": row["step"],
            "samples_per_s": row["samples_per_s"],
            "cores": row["samples_per_s"] / rates[tuple(row["patch_size"])],
        }
        for row in steps
        if tuple(row["patch_size"]) in rates
    ]


def markdown(content: dict[str, Any]) -> str:
    """Both tables."""
    lines = [
        f"# Augmentation on the CPU\n\nOne core of {content['processor']}, nnU-Net's training transforms.\n",
        "| patch | samples/s of a core | of 12 processes |\n|---|---|---|",
    ]
    for row in content["rows"]:
        size, rate = "x".join(map(str, row["patch_size"])), row["samples_per_s"]
        lines.append(f"| {size} | {rate:.2f} | {PROCESSES * rate:.1f} |")
    if content["needed"]:
        lines.append("\n| network | patch | precision | | samples/s of the GPU | cores needed | waits |")
        lines.append("|---|---|---|---|---|---|---|")
    for row in content["needed"]:
        size, waits = "x".join(map(str, row["patch_size"])), "GPU" if row["cores"] > PROCESSES else "CPU"
        rates = f"{row['samples_per_s']:.1f} | {row['cores']:.1f}"
        lines.append(f"| {row['network']} | {size} | {row['precision']} | {row['step']} | {rates} | {waits} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each patch")
    parser.add_argument("--gpu", type=Path, help="results of benchmarks.gpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "augmentation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(patch_size, given.seconds) for patch_size in PATCHES]
    content = {
        "processor": processor_name(),
        "torch": torch.__version__,
        "rows": rows,
        "needed": needed(rows, given.gpu) if given.gpu else [],
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(content, given.output.with_suffix(".json"))
    given.output.with_suffix(".md").write_text(markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    main()
