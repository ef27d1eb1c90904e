"""Time and memory of `evaluate`'s metrics beside other ways to compute them, on a synthetic case of 14 organs.

    python benchmarks/evaluate.py [--size 300 512 512] [--runs 2] [--output benchmarks/results/evaluate]

Each way runs in a process of its own that holds both label maps and may take 5 GB more. Reading files is left out.
Times are the least of the runs; memory is what the process grew by. All but nnU-Net compute HD95 and ASSD of every
label, in the box around the label in both maps; ours computes all its metrics. torchmetrics 1.9 computes distance
transforms in 2D only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SPACING = (1.5, 0.8, 0.8)
LIMIT = 5 << 30
ONE_THREAD = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
# centre as a share of the image, semi-axes in mm
ORGANS = {
    "liver": ((0.6, 0.42, 0.32), (85, 75, 80)),
    "spleen": ((0.55, 0.55, 0.78), (55, 30, 25)),
    "right kidney": ((0.45, 0.62, 0.3), (55, 28, 28)),
    "left kidney": ((0.45, 0.62, 0.68), (55, 28, 28)),
    "gallbladder": ((0.52, 0.4, 0.36), (30, 15, 15)),
    "oesophagus": ((0.75, 0.56, 0.52), (100, 9, 9)),
    "stomach": ((0.6, 0.35, 0.62), (60, 40, 45)),
    "aorta": ((0.5, 0.6, 0.52), (200, 11, 11)),
    "vena cava": ((0.5, 0.58, 0.46), (150, 12, 12)),
    "pancreas": ((0.5, 0.46, 0.52), (18, 15, 65)),
    "right adrenal": ((0.56, 0.6, 0.42), (15, 10, 4)),
    "left adrenal": ((0.56, 0.6, 0.58), (15, 10, 4)),
    "duodenum": ((0.45, 0.47, 0.42), (35, 15, 30)),
    "bladder": ((0.1, 0.42, 0.5), (35, 40, 45)),
}
# share of an organ's radius by which the predicted surface is off, and mm by which the organ with the largest is moved
ROUGHNESS = 0.06
MOVED = {"pancreas": 12.0}

# packages that have rows; the result says which are not installed
PACKAGES = ("monai", "medpy", "surface_distance", "edt")

Distances = dict[int, tuple[float, float]]  # HD95 and ASSD by label


def make_case(size: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Ellipsoids, and the same with a rough surface: prediction and reference."""
    rng = np.random.default_rng(0)
    prediction, reference = np.zeros((2, *size), np.uint8)
    scale = size[0] / 300
    for label, (name, (centre, axes)) in enumerate(ORGANS.items(), 1):
        middle = [c * n for c, n in zip(centre, size, strict=True)]
        radii = [scale * a / s for a, s in zip(axes, SPACING, strict=True)]
        reach = [1.4 * r + 2 for r in radii]
        box = tuple(
            slice(max(0, int(m - r)), min(n, int(m + r) + 1)) for m, r, n in zip(middle, reach, size, strict=True)
        )
        grid = np.ogrid[box]
        moved = [0, 0, MOVED.get(name, 0) * scale / SPACING[2]]

        def radius(shift: list[float], grid: Any = grid, middle: Any = middle, radii: Any = radii) -> NDArray:
            parts = zip(grid, middle, shift, radii, strict=True)
            return np.sqrt(sum(((g - m - s) / r) ** 2 for g, m, s, r in parts)).astype(np.float32)

        noise = ndimage.gaussian_filter(rng.standard_normal(radius(moved).shape).astype(np.float32), 4)
        reference[box][radius([0, 0, 0]) <= 1] = label
        prediction[box][radius(moved) <= 1 + ROUGHNESS * noise / noise.std()] = label
    return prediction, reference


def ours(prediction: NDArray, reference: NDArray) -> Distances:
    from nnunet_transformers.evaluation.case_metrics import case_metrics
    from nnunet_transformers.evaluation.conventions import Conventions
    from nnunet_transformers.evaluation.segmentations import Segmentation
    from nnunet_transformers.evaluation.targets import Targets

    ours, theirs = (Segmentation(voxels, SPACING, math.prod(SPACING)) for voxels in (prediction, reference))
    targets = Targets.from_regions({name: (label,) for label, name in enumerate(ORGANS, 1)})
    found = case_metrics(ours, theirs, targets, Conventions())
    return {int(key): (metrics["HD95"], metrics["ASSD"]) for key, metrics in found.items()}


def nnunet(prediction: NDArray, reference: NDArray) -> Distances:
    from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

    for label in range(1, len(ORGANS) + 1):
        compute_tp_fp_fn_tn(*(region_or_label_to_mask(part, label) for part in (reference, prediction)), None)
    return {}


def scipy_transforms(prediction: NDArray, reference: NDArray) -> Distances:
    structure = ndimage.generate_binary_structure(3, 1)

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        edges = [mask ^ ndimage.binary_erosion(mask, structure) for mask in masks]
        forth, back = (ndimage.distance_transform_edt(~edge, SPACING) for edge in reversed(edges))
        return forth[edges[0]], back[edges[1]]

    return in_boxes(prediction, reference, distances)


def simpleitk(prediction: NDArray, reference: NDArray) -> Distances:
    import SimpleITK as sitk

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        images = [sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8)) for mask in masks]
        for image in images:
            image.SetSpacing(SPACING[::-1])
        edges = [sitk.LabelContour(image) for image in images]
        forth, back = (
            sitk.GetArrayFromImage(
                sitk.Abs(sitk.SignedMaurerDistanceMap(e, squaredDistance=False, useImageSpacing=True))
            )
            for e in reversed(edges)
        )
        voxels = [sitk.GetArrayFromImage(edge) > 0 for edge in edges]
        return forth[voxels[0]], back[voxels[1]]

    return in_boxes(prediction, reference, distances)


def edt_transforms(prediction: NDArray, reference: NDArray) -> Distances:
    import edt

    structure = ndimage.generate_binary_structure(3, 1)

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        edges = [mask ^ ndimage.binary_erosion(mask, structure) for mask in masks]
        forth, back = (edt.edt(~edge, anisotropy=SPACING, parallel=1) for edge in reversed(edges))
        return forth[edges[0]], back[edges[1]]

    return in_boxes(prediction, reference, distances)


def medpy(prediction: NDArray, reference: NDArray) -> Distances:
    from medpy.metric import binary

    surface_distances = vars(binary)["__surface_distances"]

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        return surface_distances(*masks, SPACING, 1), surface_distances(*reversed(masks), SPACING, 1)

    return in_boxes(prediction, reference, distances)


def monai(prediction: NDArray, reference: NDArray) -> Distances:
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        one, other = (torch.from_numpy(mask) for mask in masks)
        measured: Any = get_edge_surface_distance(one, other, spacing=SPACING, symmetric=True)
        forth, back = measured[1]
        return forth.numpy(), back.numpy()

    return in_boxes(prediction, reference, distances)


def surface_distance(prediction: NDArray, reference: NDArray) -> Distances:
    from surface_distance import compute_surface_distances

    def distances(masks: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
        found = compute_surface_distances(*masks, SPACING)
        return found["distances_gt_to_pred"], found["distances_pred_to_gt"]

    return in_boxes(prediction, reference, distances)


def in_boxes(prediction: NDArray, reference: NDArray, distances: Callable[[Any], tuple[NDArray, NDArray]]) -> Distances:
    """HD95 and ASSD of each label from the distances of two masks, cut out as generously as their authors do."""
    found = {}
    for label, boxes in enumerate(zip(*map(ndimage.find_objects, (prediction, reference)), strict=True), 1):
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*boxes, strict=True))
        forth, back = distances((prediction[box] == label, reference[box] == label))
        hd95 = max(np.percentile(forth, 95), np.percentile(back, 95))
        found[label] = (float(hd95), float(np.concatenate([forth, back]).mean()))
    return found


WAYS: dict[str, tuple[Callable[[NDArray, NDArray], Distances], str]] = {
    "nnunet-transformers": (ours, "all metrics"),
    "nnU-Net": (nnunet, "Dice, IoU, counts only"),
    "medpy": (medpy, "HD95, ASSD of its surface distances"),
    "MONAI": (monai, "HD95, ASSD of its surface distances"),
    "surface-distance": (surface_distance, "HD95, ASSD of its distances, between surface elements instead of voxels"),
    "SciPy": (scipy_transforms, "HD95, ASSD by erosion and distance transform"),
    "edt": (edt_transforms, "HD95, ASSD by erosion and its distance transform"),
    "SimpleITK": (simpleitk, "HD95, ASSD by LabelContour and SignedMaurerDistanceMap"),
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, folder: Path, runs: int) -> dict[str, Any]:
    """Run a way in this process."""
    prediction, reference = (np.load(folder / f"{part}.npy") for part in ("prediction", "reference"))
    way = WAYS[name][0]
    small = np.broadcast_to(np.arange(4 * len(ORGANS) + 4, dtype=np.uint8) // 4, (6, 6, 4 * len(ORGANS) + 4)).copy()
    way(small, small)  # imports
    resource.setrlimit(resource.RLIMIT_DATA, (peak() + LIMIT,) * 2)
    before, seconds, result = peak(), math.inf, {}
    for _ in range(runs):
        start = time.perf_counter()
        result = way(prediction, reference)
        seconds = min(seconds, time.perf_counter() - start)
    return {"seconds": seconds, "memory_GB": (peak() - before) / 1e9, "result": result}


def table(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    size = "x".join(map(str, reversed(content["size"])))
    lines = [
        "# Metrics of a case of 14 organs",
        "",
        f"`python benchmarks/evaluate.py --runs {content['runs']}`: {size} voxels of "
        f"{' x '.join(map(str, SPACING[::-1]))} mm, one thread, files not read. Seconds of the fastest run; memory "
        "that the process takes besides the two label maps; largest difference from ours over the 14 labels, in mm. "
        "Each package computes its distances once for both metrics, in the box around the label.",
        "",
        "| | computes | time, s | memory, GB | HD95 differs by | ASSD differs by |",
        "|---|---|---|---|---|---|",
    ]
    own = content["ways"]["nnunet-transformers"]["result"]
    for name, row in content["ways"].items():
        cells = [name, WAYS[name][1]]
        if "failed" in row:
            cells += [row["failed"], "-", "-", "-"]
        else:
            cells += [f"{row['seconds']:.2f}", f"{row['memory_GB']:.2f}"]
            for i in range(2):
                gaps = [abs(values[i] - own[label][i]) for label, values in row["result"].items()]
                cells.append(f"{max(gaps):.1e}" if gaps else "-")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Load of the machine at the start: {content['load']:.1f} processes per core."]
    if content["not_installed"]:
        lines[-1] += f" Not installed: {', '.join(content['not_installed'])}."
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(300, 512, 512), help="voxels, slices first")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--output", type=Path, help="without ending; .json and .md are written")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        (name,) = arguments.ways
        print(json.dumps(measure(name, arguments.folder, arguments.runs)))
        return
    content: dict[str, Any] = {"size": list(arguments.size), "runs": arguments.runs, "ways": {}}
    content["load"] = os.getloadavg()[0] / (os.cpu_count() or 1)
    content["not_installed"] = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    with tempfile.TemporaryDirectory() as folder:
        for name, part in zip(("prediction", "reference"), make_case(tuple(arguments.size)), strict=True):
            np.save(Path(folder) / f"{name}.npy", part)
        for name in arguments.ways:
            words = [sys.executable, __file__, "--folder", folder, "--ways", name, "--runs", str(arguments.runs)]
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
                print(reason, file=sys.stderr)
                content["ways"][name] = {"failed": reason.split(":")[0]}
            else:
                content["ways"][name] = json.loads(done.stdout)
            print(name, {k: v for k, v in content["ways"][name].items() if k != "result"}, flush=True)
    if "nnunet-transformers" in content["ways"]:
        print(table(content))
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(table(content))


if __name__ == "__main__":
    main()
