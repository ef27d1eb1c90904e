"""Samples per second of each method's loader, from the store that `pretrain prepare` writes.

    PYTHONPATH=. python benchmarks/loaders.py      # results/loaders.json and .md

Volumes of the size of a CT and radiographs, with one and two workers, from a warm page cache, and from a cold one: the
files of the store are then dropped from the cache before every sample. The processor time of a sample is that of one
process without workers; from it follow the workers that keep up with a GPU whose step takes a second for the recipe's
batch, each on a core of its own. Rates depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matching_cost import SHAPE, SPACING, write_images
from PIL import Image
from prepare import draw_radiograph
from synthetic_reports import write_text_encoder
from torch.utils.data import DataLoader, Dataset

from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.classification.data import ClassificationData
from nnunet_transformers.pretraining.data import (
    FusedCropData,
    MaskedCropData,
    MaskedViewData,
    MatchedViewData,
    OverlappingViewData,
    ReportPairData,
    TwoViewData,
)
from nnunet_transformers.pretraining.data.prepare import prepare

VOLUMES, RADIOGRAPHS, PIXELS = 3, 24, (2544, 3056)
STEP_SECONDS = 1.0
# shortest time of a measurement of one process
SECONDS = 4.0


class Cold(Dataset[Any]):
    """Samples whose files are dropped from the page cache before each of them."""

    def __init__(self, samples: Any, folder: Path) -> None:
        self.samples, self.folder = samples, folder

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        drop(self.folder)
        return self.samples[index]


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def loaders(work: Path) -> dict[str, tuple[Callable[[], Any], Path, int]]:
    """Return by name what makes the samples, the folder that they come from, and the recipe's batch."""
    ct, raw, small = (work / name for name in ("ct", "raw", "small"))
    table, bert = str(work / "reports.csv"), str(work / "bert")
    long: dict[str, Any] = {"samples_per_epoch": 10**6}

    def classes(folder: Path, table: str, **options: Any) -> Any:
        data = ClassificationData(str(folder), table, **options)
        data.setup("fit")
        return data.training

    def pairs(folder: Path) -> Any:
        return ReportPairData(table, bert, (224, 224), 3, str(folder)).training

    matched: dict[str, Any] = {"matcher": "affine", "cache": str(work / "cache"), **long}
    cube = (160, 160, 160)
    return {
        "qt_ssl_ct, 96^3": (lambda: MaskedViewData(str(ct), (96, 96, 96), **long).views, ct, 32),
        "mae, 160^3": (lambda: MaskedCropData(str(ct), cube, (10, 10, 10), **long).crops, ct, 8),
        "volume_fusion, 160^3": (lambda: FusedCropData(str(ct), cube, **long).crops, ct, 8),
        "matcher, 32x96x96": (lambda: OverlappingViewData(str(ct), (32, 96, 96), spacing=2.0, **long).views, ct, 4),
        "alice, 64x192x192, maps known": (
            lambda: MatchedViewData(str(ct), (64, 192, 192), (4, 6, 6), **matched).views,
            ct,
            8,
        ),
        "unimiss 3D, 16x96x96": (lambda: TwoViewData(str(ct), (224, 224), (16, 96, 96), **long).volumes, ct, 32),
        "unimiss 2D, 224^2 of the prepared 256": (
            lambda: TwoViewData(str(ct), (224, 224), (16, 96, 96), str(small), **long).images,
            small,
            32,
        ),
        "mgca, 224^2 of the prepared 256": (lambda: pairs(small), small, 72),
        f"mgca, 224^2 of JPEG files of {PIXELS[1]}x{PIXELS[0]}": (lambda: pairs(raw), raw, 72),
        "mgca_linear, 224^2 of the prepared 256": (
            lambda: classes(small, str(work / "labels.csv"), patch_size=(224, 224), canvas=(256, 256)),
            small,
            48,
        ),
    }


def write_data(work: Path) -> None:
    write_images(work / "ct", VOLUMES, virtual=False)
    (work / "raw").mkdir()
    names = [f"radiograph_{number}.jpg" for number in range(RADIOGRAPHS)]
    for number, name in enumerate(names):
        Image.fromarray(draw_radiograph(number, PIXELS)).save(work / "raw" / name, quality=92)
    prepare(work / "raw", work / "small", longest=256, normalization="rescale_to_0_1")
    write_text_encoder(work / "bert")
    report = "there is a large nodul in the left lung"
    rows = [f"{name},{report} {number},{'train' if number else 'val'}" for number, name in enumerate(names)]
    (work / "reports.csv").write_text("\n".join(["image,report,split", *rows]))
    rows = [f"{name},{number % 2}" for number, name in enumerate(names)]
    (work / "labels.csv").write_text("\n".join(["image,label", *rows]))


def measure(work: Path, number: int) -> list[dict[str, Any]]:
    rows = []
    for name, (make, folder, batch) in loaders(work).items():
        samples = make()
        for index in range(3):  # warms the cache, and computes maps
            samples[index]
        start, used, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < start + SECONDS or count < number:
            samples[count % len(samples)]
            count += 1
        cpu = (time.process_time() - used) / count
        row: dict[str, Any] = {"loader": name, "batch": batch, "samples": count, "cpu_seconds": cpu}
        for workers in (1, 2):
            row[f"warm_{workers}"] = rate(samples, workers, count)
            row[f"cold_{workers}"] = rate(Cold(samples, folder), workers, count)
        row["workers_needed"] = math.ceil(batch * cpu / STEP_SECONDS)
        print(row, flush=True)
        rows.append(row)
    return rows


def rate(samples: Dataset[Any], workers: int, number: int) -> float:
    """Return the samples per second of a loader, from its first sample on."""
    order = [index % len(samples) for index in range(number + 1)]  # type: ignore[arg-type]  # it has a length
    loader = DataLoader(samples, 1, sampler=order, num_workers=workers)
    found = iter(loader)
    next(found)
    start = time.perf_counter()
    for _ in range(number):
        next(found)
    return number / (time.perf_counter() - start)


def as_markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Volumes of {'x'.join(map(str, SHAPE))} voxels at {' x '.join(map(str, SPACING))} mm, float32; "
        f"{result['machine']}, {os.cpu_count()} cores shared with other work, one thread a worker; at least "
        f"{result['samples']} samples and {SECONDS:g} s each, with what the workers had ready after the first.",
        "",
        "| recipe, sample | CPU s per sample | samples/s: 1 worker, warm | cold | 2 workers, warm | cold "
        f"| batch | workers for a step of {STEP_SECONDS:g} s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        rates = " | ".join(f"{row[key]:.2f}" for key in ("warm_1", "cold_1", "warm_2", "cold_2"))
        lines.append(
            f"| {row['loader']} | {row['cpu_seconds']:.3f} | {rates} | {row['batch']} | {row['workers_needed']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        rows = measure(Path(folder), options.samples)
    result = {"machine": processor_name(), "samples": options.samples, "rows": rows}
    output = Path(__file__).parent / "results" / "loaders"
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
