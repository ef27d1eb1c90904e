"""Samples a second of nnU-Net's augmentation on one core, and the cores that a training step would need.

    python benchmarks/augmentation.py [--seconds 20] [--gpu benchmarks/results/gpu/gpu.json]
    python benchmarks/augmentation.py --device cuda [--seconds 8]

A sample is a crop in memory, to which nnU-Net's training transforms are applied as its loader does, in one thread;
cropping, which a plan's `augment_on_device` leaves to the core, is measured too, from a case in memory. Reading from
disk comes on top. With the results of `python -m benchmarks.gpu`, each network's rate is divided by it:
where that is more than the machine's cores, or nnU-Net's processes (`nnUNet_n_proc_DA`, 12 by default), the GPU waits.

With `--device` the batches of a plan's setting `augment_on_device` are measured instead: crops in page-locked memory
are copied and augmented, without a training beside it. Each transform alone is timed too, and the results of all of
them on some samples are compared with the CPU's for the same seed, without noise, which differs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batchgeneratorsv2.helpers.scalar_type import RandomScalar
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers._atomic import write_json
from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.trainers.device_augmentation import DeviceLoader, augment
from nnunet_transformers.trainers.device_transforms import on_device

# nnU-Net's usual patches, isotropic
PATCHES = ((128, 128, 128), (96, 96, 96), (64, 192, 160), (512, 512), (320, 320), (256, 256))
# scales of deep supervision
LEVELS = 5
PROCESSES = 12
# on a device: patch and batch, as in benchmarks.gpu
BATCHES = (((128, 128, 128), 2), ((512, 512), 8))
COMPARED = 3


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
    rates = {"samples_per_s": 1 / mean(own), "crops_per_s": crops_per_second(patch_size, crop, seconds / 4)}
    return {"patch_size": patch_size, "crop": crop, "samples": len(own), **rates}


class CaseInMemory:
    """A dataset of one case, as nnU-Net's loader reads it, of 1.5 times the crop's size.

    Args:
        crop: voxels per axis.
    """

    identifiers = ("case",)

    def __init__(self, crop: tuple[int, ...]) -> None:
        shape = (1, *(n * 3 // 2 for n in crop)) if len(crop) == 3 else (1, 1, *(n * 3 // 2 for n in crop))
        self.image, self.labels = np.ones(shape, np.float32), np.ones(shape, np.int8)

    def load_case(self, _: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Image, labels, no previous segmentation, and properties."""
        return self.image, self.labels, None, {"class_locations": {}}


def crops_per_second(patch_size: tuple[int, ...], crop: tuple[int, ...], seconds: float) -> float:
    """Samples a second of nnU-Net's loader without transforms, by the time on the processor."""
    labels = SimpleNamespace(all_labels=[0, 1, 2], has_ignore_label=False)
    loader = nnUNetDataLoader(CaseInMemory(crop), 1, crop, patch_size, labels)
    next(loader)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.process_time()
        next(loader)
        times.append(time.process_time() - start)
    return 1 / mean(times)


def measure_on(device: torch.device, patch_size: tuple[int, ...], batch_size: int, seconds: float) -> dict[str, Any]:
    """Time batches on a device, and compare samples with the CPU's."""
    transforms, crop = transforms_of(patch_size)
    images = torch.randn(batch_size, 1, *crop)
    # blocks, as objects have fewer borders than noise
    blocks = torch.randint(0, 3, (batch_size, 1, *(n // 8 for n in crop)))
    labels = F.interpolate(blocks.float(), crop).to(torch.int16)
    batch: dict[str, Any] = {"data": images, "target": labels, "keys": ["case"] * batch_size}
    compared = compare(device, batch, transforms)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        batch |= {name: batch[name].pin_memory() for name in ("data", "target")}

    def crops() -> Iterator[dict[str, Any]]:
        while True:  # on the CPU there is no copy, and some transforms act in place
            yield batch if device.type == "cuda" else {**batch, "data": images.clone()}

    loader = DeviceLoader(crops(), transforms, device)
    for _ in range(3):
        next(loader)
    wait(device)
    start, batches = time.perf_counter(), 0
    while batches < 3 or time.perf_counter() < start + seconds:
        next(loader)
        batches += 1
    wait(device)
    rate = batches * batch_size / (time.perf_counter() - start)
    peak = {"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20} if device.type == "cuda" else {}
    parts = {name: time_part(device, batch, part) for name, part in always(transforms)}
    row = {"patch_size": patch_size, "crop": crop, "batch_size": batch_size, "batches": batches, "samples_per_s": rate}
    return {**row, **peak, **compared, "parts_ms": parts}


def wait(device: torch.device) -> None:
    """Wait for what was started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(device: torch.device, batch: dict[str, Any], transforms: Any) -> dict[str, float]:
    """The largest difference of a voxel, images having a deviation of 1, and the share of labels that differ."""
    acting = [part for _, part in always(transforms) if not isinstance(part, GaussianNoiseTransform)]
    transforms = ComposeTransforms(acting)
    sides = ((transforms, torch.device("cpu")), (on_device(transforms, device), device))
    differences, labels = [], []
    for seed in range(COMPARED):
        results = []
        for side, where in sides:
            np.random.seed(seed)
            torch.manual_seed(seed)
            sample = {name: batch[name][:1].clone() for name in ("data", "target")}
            results.append(augment(sample, side, where))
        expected, found = results
        differences.append(float((found["data"].cpu() - expected["data"]).abs().max()))
        labels.append(float((found["target"][0].cpu() != expected["target"][0]).float().mean()))
    return {"largest_difference": max(differences), "labels_that_differ": mean(labels)}


def always(transforms: Any) -> list[tuple[str, Any]]:
    """Each transform by name, so that it acts on every sample and channel."""
    parts = []
    for part in transforms.transforms:
        changed = copy(part.transform if isinstance(part, RandomTransform) else part)
        if hasattr(changed, "p_per_channel"):
            changed.p_per_channel = 1.1
        if isinstance(changed, SpatialTransform):
            changed.p_rotation = changed.p_scaling = 1.1
        parts.append((type(changed).__name__, changed))
    return parts


def time_part(device: torch.device, batch: dict[str, Any], part: Any) -> float:
    """Milliseconds of a transform of one sample, the wait for the device included; the median of five."""
    moved = on_device(part, device)
    times = []
    for _ in range(6):
        image, labels = (batch[name][0].to(device, copy=True) for name in ("data", "target"))
        wait(device)
        start = time.perf_counter()
        moved(image=image, segmentation=labels)
        wait(device)
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times[1:])[2]


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
        "| patch | samples/s of a core | of 12 processes | crops/s of a core |\n|---|---|---|---|",
    ]
    for row in content["rows"]:
        size, rate = "x".join(map(str, row["patch_size"])), row["samples_per_s"]
        lines.append(f"| {size} | {rate:.2f} | {PROCESSES * rate:.1f} | {row['crops_per_s']:.1f} |")
    if content["needed"]:
        lines.append("\n| network | patch | precision | | samples/s of the GPU | cores needed | waits |")
        lines.append("|---|---|---|---|---|---|---|")
    for row in content["needed"]:
        size, waits = "x".join(map(str, row["patch_size"])), "GPU" if row["cores"] > PROCESSES else "CPU"
        rates = f"{row['samples_per_s']:.1f} | {row['cores']:.1f}"
        lines.append(f"| {row['network']} | {size} | {row['precision']} | {row['step']} | {rates} | {waits} |")
    return "\n".join(lines) + "\n"


def device_markdown(content: dict[str, Any]) -> str:
    """The tables of a device."""
    rows = content["rows"]
    sizes = ["x".join(map(str, row["patch_size"])) for row in rows]
    lines = [
        f"# Augmentation on the device\n\n{content['device']}, nnU-Net's training transforms by `augment_on_device`, "
        "without a training beside it.\n",
        "| patch | batch | samples/s | peak MiB | largest difference from the CPU | labels that differ |",
        "|---|---|---|---|---|---|",
    ]
    for size, row in zip(sizes, rows, strict=True):
        equality = f"{row['largest_difference']:.1e} | {row['labels_that_differ']:.1e}"
        rate = f"{row['samples_per_s']:.1f} | {row.get('peak_mib', float('nan')):.0f}"
        lines.append(f"| {size} | {row['batch_size']} | {rate} | {equality} |")
    lines.append(f"\nMilliseconds of a sample:\n\n| transform | {' | '.join(sizes)} |\n|---{'|---' * len(sizes)}|")
    for name in rows[0]["parts_ms"]:
        lines.append(f"| {name} | {' | '.join(format(row['parts_ms'][name], '.2f') for row in rows)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each patch")
    parser.add_argument("--gpu", type=Path, help="results of benchmarks.gpu")
    parser.add_argument("--device", help="augment on this one; without it on a core")
    parser.add_argument("--tiny", action="store_true", help="a dry run of --device at small sizes")
    parser.add_argument("--output", type=Path, help="without a suffix; by default in benchmarks/results")
    given = parser.parse_args()
    default = "augmentation_device" if given.device else "augmentation"
    output = given.output or Path(__file__).parent / "results" / default
    torch.set_num_threads(1)
    content: dict[str, Any] = {"processor": processor_name(), "torch": torch.__version__}
    if given.device:
        device = torch.device(given.device)
        torch.backends.cudnn.benchmark = True  # as nnU-Net
        batches = [(tuple(n // 4 for n in size), 2) for size, _ in BATCHES] if given.tiny else BATCHES
        content["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else content["processor"]
        content["rows"] = [measure_on(device, size, batch_size, given.seconds) for size, batch_size in batches]
        text = device_markdown(content)
    else:
        content["rows"] = [measure(patch_size, given.seconds) for patch_size in PATCHES]
        content["needed"] = needed(content["rows"], given.gpu) if given.gpu else []
        text = markdown(content)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(content, output.with_suffix(".json"))
    output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
