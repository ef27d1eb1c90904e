"""Plan random fingerprints of datasets with every planner, check the plans, and time the planning beside nnU-Net's.

    PYTHONPATH=. python benchmarks/fingerprints.py WORK --count 100                    # WORK/plans.jsonl, resumes
    PYTHONPATH=. python benchmarks/fingerprints.py WORK --report benchmarks/results/fingerprints   # .json and .md

No image is needed: nnU-Net's planners read ``dataset.json`` and the fingerprint alone. Networks run forward and
backward on tensors without data while the planner traces their memory, and the shapes of their outputs are kept. A
configuration whose architecture, batch and channels (with the cascade's) are not those of such a trace is traced again.
Each plan starts without the shapes and windows that the process remembers from others, as a command does.

``--quick`` plans more in the same time: networks are assumed to need so many bytes a voxel, a number that is drawn as
well, nnU-Net's own part is planned once for all networks, and the networks run forward only. Such plans are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from io import StringIO
from math import prod
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.architectures.layers.window_choice import choose_window
from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.discovery import PLANNERS, find
from nnunet_transformers.plans import memory, planner, tiling
from nnunet_transformers.plans.output_shapes import OutputShapes
from nnunet_transformers.plans.planner import TransformerPlanner

STOCK = {"nnUNetPlanner": ExperimentPlanner, "nnUNetPlannerResEncM": nnUNetPlannerResEncM}
NAME = "Dataset903_Fingerprint"
GIGABYTES = (4, 6, 8, 11, 16, 24, 40, 80)
# seconds of nnU-Net's own planning from which data count as large or odd
LONG = 1.0


@dataclass(frozen=True)
class Fingerprint:
    """A dataset as planners see it.

    Attributes:
        spacing: mm per voxel, median of the cases.
        shapes: of three cases, in voxels.
        channels: image channels.
        labels: labels including the background.
        cases: number of training cases.
        gigabytes: memory to plan for.
    """

    spacing: tuple[float, ...]
    shapes: tuple[tuple[int, ...], ...]
    channels: int
    labels: int
    cases: int
    gigabytes: int


def draw(seed: int, index: int) -> Fingerprint:
    """Draw a fingerprint: a fifth are 2D images, the others volumes of 8 to 1024 voxels an axis, spacings to 10:1."""
    rng = np.random.default_rng([seed, index])
    is_2d = rng.random() < 0.2
    finest = float(np.exp(rng.uniform(np.log(0.1), np.log(3))))
    # half have voxels of about a cube, the others one axis, or two, that is up to ten times as coarse
    ratios = np.ones(3) if rng.random() < 0.3 else np.exp(rng.uniform(0, np.log(rng.choice([2, 10])), 3))
    ratios[rng.integers(3)] = 1
    sizes = np.exp(rng.uniform(np.log(8), np.log(rng.choice([64, 256, 640, 1024])), 3))
    spread = rng.choice([0, 0.1, 0.4])
    shapes = [tuple(int(max(4, round(n))) for n in sizes * np.exp(rng.normal(0, spread, 3))) for _ in range(3)]
    spacing = tuple(float(np.round(s, 3)) for s in finest * ratios)
    if is_2d:
        spacing, shapes = (999.0, *spacing[1:]), [(1, *shape[1:]) for shape in shapes]
    return Fingerprint(
        spacing,
        tuple(shapes),
        channels=int(rng.integers(1, 7)),
        labels=int(np.round(np.exp(rng.uniform(np.log(2), np.log(120))))),
        cases=int(np.round(np.exp(rng.uniform(np.log(5), np.log(2000))))),
        gigabytes=int(rng.choice(GIGABYTES)),
    )


def plan(planner_class: Any, fingerprint: Fingerprint, is_quick: bool = False) -> tuple[dict[str, Any], float]:
    """Plan a fingerprint; return the plan as its file has it, and the seconds of processor time."""
    with tempfile.TemporaryDirectory() as folder:
        raw, preprocessed = (Path(folder) / kind / NAME for kind in ("raw", "preprocessed"))
        for path in (raw / "imagesTr", raw / "labelsTr", preprocessed):
            path.mkdir(parents=True)
        for channel in range(fingerprint.channels):
            (raw / "imagesTr" / f"case_{channel:04d}.nii.gz").touch()
        (raw / "labelsTr" / "case.nii.gz").touch()
        dataset = {
            "channel_names": {str(c): "MRI" for c in range(fingerprint.channels)},
            "labels": {"background": 0, **{f"label{i}": i for i in range(1, fingerprint.labels)}},
            "numTraining": fingerprint.cases,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
        }
        (raw / "dataset.json").write_text(json.dumps(dataset))
        stated = {
            "spacings": [list(fingerprint.spacing)] * len(fingerprint.shapes),
            "shapes_after_crop": [list(shape) for shape in fingerprint.shapes],
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {},
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(stated))
        for kind in ("raw", "preprocessed"):
            os.environ[f"nnUNet_{kind}"] = str(Path(folder) / kind)
        TRACES.clear()
        if not is_quick:
            forget()
        start = time.process_time()
        planned = planner_class(NAME, gpu_memory_target_in_gb=fingerprint.gigabytes)
        planned.plan_experiment()
        seconds = time.process_time() - start
        return json.loads((preprocessed / f"{planned.plans_identifier}.json").read_text()), seconds


def forget() -> None:
    """Drop what the process remembers from other plans."""
    tiling._plan_tokens.cache_clear()
    choose_window.cache_clear()
    memory._LiveBytes._run = OutputShapes()


@dataclass(frozen=True)
class Trace:
    """A training step on tensors without data.

    Attributes:
        network: that was traced, without data.
        arguments: of the network, as ``arch_kwargs``.
        shapes: of its outputs.
        peaks: static and other bytes.
    """

    network: torch.nn.Module
    arguments: dict[str, Any]
    shapes: list[tuple[int, ...]]
    peaks: tuple[int, int]

    @property
    def bytes(self) -> int:
        return sum(self.peaks)

    @classmethod
    def of(cls, build: Callable[[], torch.nn.Module], channels: int, size: Sequence[int], batch: int) -> Trace:
        """Trace a step as ``training_peak_bytes`` and keep what the network returns."""
        networks: list[torch.nn.Module] = []
        shapes: list[tuple[int, ...]] = []

        def keep(_: Any, __: Any, outputs: Any) -> None:
            shapes.extend(tuple(o.shape) for o in (outputs if isinstance(outputs, list) else [outputs]))

        def build_watched() -> torch.nn.Module:
            networks.append(build())
            networks[0].register_forward_hook(keep)
            return networks[0]

        peaks = memory.training_peak_bytes(build_watched, channels, size, batch)
        return cls(networks[0], {}, shapes, peaks)


# of the plan in the making, by input channels, patch and batch
TRACES: dict[Any, Trace] = {}


def keep_traces() -> None:
    """Let the planner's traces remain in ``TRACES``."""

    # fingerprints have labels, no regions
    def traced(build: Any, channels: int, size: Sequence[int], batch: int, **_: Any) -> tuple[int, int]:
        TRACES[channels, tuple(size), batch] = trace = Trace.of(build, channels, size, batch)
        return trace.peaks

    peak_bytes = TransformerPlanner._peak_bytes

    def with_arguments(self: Any, tokens: Any, options: Any, channels: int, batch: int) -> tuple[int, int]:
        found = peak_bytes(self, tokens, options, channels, batch)
        key = channels, tokens.patch_size, batch
        arguments = json.loads(json.dumps(self._arguments(tokens, options)))
        TRACES[key] = replace(TRACES[key], arguments=arguments)
        return found

    patch.object(planner, "training_peak_bytes", traced).start()
    patch.object(TransformerPlanner, "_peak_bytes", with_arguments).start()


def plan_quickly() -> None:
    """Assume so many bytes a voxel, a number that is drawn, and plan nnU-Net's own part once for all networks."""
    parameters: dict[Any, int] = {}
    stock = ExperimentPlanner.get_plans_for_configuration
    known: dict[str, Any] = {}

    def assumed(self: Any, tokens: Any, options: Any, channels: int, batch: int) -> tuple[int, int]:
        key = self.network_name, len(tokens.patch_size), tokens.num_stages
        labels = self._labels.num_segmentation_heads
        if key not in parameters:
            arguments = self._arguments(tokens, options)
            with without_data():
                network = create_network(self.network_name, channels, labels, arguments.pop("patch_size"), **arguments)
            parameters[key] = sum(p.numel() for p in network.parameters())
        digits = f"{self.dataset_json['numTraining']}{labels}{channels}"
        voxel_bytes = np.exp(np.random.default_rng(int(digits)).uniform(np.log(100), np.log(4000)))
        # logits and what the loss makes of them grow with the labels
        voxel_bytes = voxel_bytes * (0.3 if options else 1) + 24 * labels + 4 * channels
        return 16 * parameters[key] + int(memory.CUDA_OVERHEAD), int(batch * prod(tokens.patch_size) * voxel_bytes)

    def shared(self: Any, *arguments: Any) -> dict[str, Any]:
        spacing, shape, identifier, voxels, _ = arguments
        stated = (self.dataset_json, list(spacing), list(shape), voxels, self.UNet_vram_target_GB)
        key = json.dumps(stated, default=float)
        if key not in known:
            if len(known) > 200:
                known.clear()
            known[key] = stock(self, *arguments)
        return {**deepcopy(known[key]), "data_identifier": identifier}

    patch.object(TransformerPlanner, "_peak_bytes", assumed).start()
    patch.object(ExperimentPlanner, "get_plans_for_configuration", shared).start()
    # which nnU-Net finds by importing all of its readers, and the cases, for which it starts processes
    patch.object(ExperimentPlanner, "determine_reader_writer", lambda _: SimpleITKIO).start()
    patch.object(default_experiment_planner, "get_filenames_of_train_images_and_targets", lambda *_: {}).start()


def run_forward(build: Callable[[], torch.nn.Module], channels: int, size: Sequence[int]) -> Trace:
    """Run a network forward alone, on one sample."""
    with without_data():
        network, image = build(), torch.empty(1, channels, *size)
    with torch.no_grad(), memory._LiveBytes():
        outputs = network(image)
    shapes = [tuple(o.shape) for o in (outputs if isinstance(outputs, list) else [outputs])]
    return Trace(network, {}, shapes, (0, 0))


def check(plans: dict[str, Any], name: str, fingerprint: Fingerprint, is_quick: bool) -> tuple[list[str], float]:
    """Find the faults of a configuration; return them with the gigabytes that a training step takes."""
    configuration = plans["configurations"][name]
    channels = fingerprint.channels
    if name == "3d_fullres" and "3d_cascade_fullres" in plans["configurations"]:
        channels += fingerprint.labels - 1
    size, batch = configuration["patch_size"], configuration["batch_size"]
    arguments = configuration["architecture"]["arch_kwargs"]
    trace = TRACES.get((channels, tuple(size), batch))
    path = configuration["architecture"]["network_class_name"]

    def build() -> torch.nn.Module:
        return get_network_from_plans(path, arguments, (), channels, fingerprint.labels, deep_supervision=True)

    if is_quick:
        trace = run_forward(build, channels, size)
    elif trace is None or trace.arguments != arguments:
        trace = Trace.of(build, channels, size, batch)
    network, shapes = trace.network, trace.shapes
    faults = []
    if trace.bytes > fingerprint.gigabytes * 1e9:
        faults.append(f"needs {trace.bytes / 1e9:.2f} GB of {fingerprint.gigabytes}")
    if batch < 2:
        faults.append(f"batch of {batch}")
    strides = arguments["strides"]
    total = [prod(stride[axis] for stride in strides) for axis in range(len(size))]
    if any(n % stride for n, stride in zip(size, total, strict=True)):
        faults.append(f"patch {size} is no multiple of {total}")
    # nnU-Net's targets of deep supervision: scales are products of the strides but for the last
    scales = np.cumprod(strides, axis=0)[:-1].tolist() if network.deeply_supervised else [[1] * len(size)]
    samples = 1 if is_quick else batch
    expected = [(samples, fingerprint.labels, *(n // s for n, s in zip(size, scale, strict=True))) for scale in scales]
    if shapes != expected:
        faults.append(f"outputs {shapes} in place of {expected}")
    if plans["experiment_planner_used"].startswith(("nnUNetPlannerQTUNet", "nnUNetPlannerVTUNet", "nnUNetPlannerUNet")):
        for partition in (m for m in network.modules() if isinstance(m, WindowPartition)):
            if partition.has_padding:
                faults.append(f"windows of {partition.window_size} pad their grid")
    return faults, trace.bytes / 1e9


def run(name: str, planner_class: Any, seed: int, index: int, is_checked: bool, is_quick: bool) -> dict[str, Any]:
    """Plan and check a fingerprint; what is found is a row of the log."""
    fingerprint = draw(seed, index)
    row: dict[str, Any] = {"planner": name, "seed": seed, "index": index, "quick": is_quick, **asdict(fingerprint)}
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            plans, row["seconds"] = plan(planner_class, fingerprint, is_quick)
    except RuntimeError as error:
        # a network whose weights do not fit, which the planner says; all else is a fault
        refused = "does not fit" in str(error)
        return {**row, "refused" if refused else "faults": str(error) if refused else [repr(error)]}
    except ValueError as error:
        refused = "is a 3D network and" in str(error)
        return {**row, "refused" if refused else "faults": str(error) if refused else [traceback.format_exc()]}
    except Exception:
        return {**row, "faults": [traceback.format_exc()]}
    row["configurations"] = {}
    row["faults"] = []
    for kind, configuration in plans["configurations"].items():
        if "patch_size" not in configuration:
            continue
        entry = {key: configuration[key] for key in ("patch_size", "batch_size", "spacing")}
        arguments = configuration["architecture"]["arch_kwargs"]
        entry |= {"strides": arguments["strides"], "windows": arguments.get("window_sizes")}
        entry["checkpointing"] = arguments.get("activation_checkpointing")
        if is_checked and name not in STOCK:
            try:
                faults, entry["gigabytes"] = check(plans, kind, fingerprint, is_quick)
            except Exception:
                faults = [traceback.format_exc()]
            row["faults"] += [f"{kind}: {fault}" for fault in faults]
        row["configurations"][kind] = entry
    return row


@cache
def planners() -> dict[str, Any]:
    """nnU-Net's planners and ours, of networks whose library is installed."""
    ours = {name: find(name) for name in PLANNERS}
    return STOCK | {n: c for n, c in ours.items() if not get_network(c.network_name).missing_extra}


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log that may be cut at its end."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a process that was killed
            continue
    return rows


def pending(path: Path, names: Sequence[str], indices: range, options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Planners and numbers of fingerprints that the log does not have, fingerprint by fingerprint."""
    alike = {"quick": options.quick, "batch_ratio": options.batch_ratio, "seed": options.seed}
    known = {(row["planner"], row["index"]) for row in read(path) if alike.items() <= row.items()}
    for index in indices:
        yield from ((name, index) for name in names if (name, index) not in known)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    return {"median": median(values), "p95": float(np.percentile(values, 95)), "max": max(values)}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count, times and batches of each planner."""
    keys = ("planner", "index", "quick", "batch_ratio")
    rows = list({tuple(row.get(key) for key in keys): row for row in rows}.values())
    stock = {row["index"]: row for row in rows if row["planner"] == "nnUNetPlanner"}
    summary: dict[str, Any] = {"processor": processor_name(), "planners": {}, "faults": [], "slowest": []}
    for name in dict.fromkeys(row["planner"] for row in rows):
        limited = [row for row in rows if row["planner"] == name and row.get("batch_ratio") is None]
        exact = [row for row in limited if not row["quick"]]
        entry: dict[str, Any] = {
            "exact": len(exact),
            "quick": len(limited) - len(exact),
            "configurations": sum(len(row.get("configurations", {})) for row in limited),
            "refused": sum("refused" in row for row in limited),
            "faulty": sum(bool(row.get("faults")) for row in limited),
        }
        timed = [row for row in exact if "seconds" in row and "seconds" in stock.get(row["index"], {})]
        if timed:
            entry["timed"] = len(timed)
            entry["seconds"] = spread([row["seconds"] for row in timed])
            pairs = [(row["seconds"], stock[row["index"]]["seconds"]) for row in timed]
            entry["times_stock"] = spread([own / others for own, others in pairs])
            if large := [own / others for own, others in pairs if others > LONG]:
                entry["times_stock_large"] = {"number": len(large), **spread(large)}
        for key, ratio in (("batch", None), ("batch_unlimited", float("inf"))):
            some = [
                row for row in rows if row["planner"] == name and not row["quick"] and row.get("batch_ratio") == ratio
            ]
            for kind in ("2d", "3d_fullres"):
                found = [
                    _voxels(row["configurations"][kind]) / _voxels(stock[row["index"]]["configurations"][kind])
                    for row in some
                    if kind in row.get("configurations", {})
                    and kind in stock.get(row["index"], {}).get("configurations", {})
                ]
                if found and name not in STOCK:
                    entry[f"{key}_{kind}"] = {"number": len(found), **spread(found)}
        summary["planners"][name] = entry
        summary["faults"] += [row for row in limited if row.get("faults")]
        summary["slowest"] += sorted(timed, key=lambda row: -row["seconds"])[:1]
    return summary


def _voxels(configuration: dict[str, Any]) -> int:
    return int(configuration["batch_size"]) * prod(configuration["patch_size"])


def report(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the summary as JSON and as tables."""
    summary = summarise(rows)
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    planned = summary["planners"]
    lines = [
        "# Plans of random fingerprints",
        "",
        "[The script](../fingerprints.py) draws the datasets: images and volumes of about 8 to 1024 voxels an axis,",
        "voxels up to ten times as long as wide, 1 to 6 channels, 2 to 120 labels, 5 to 2000 cases, 4 to 80 GB. Traced",
        "plans are those of the command; quick ones assume the bytes of a voxel. Each configuration was built from its",
        "plan and run on tensors without data: shapes of all outputs, divisors of the patch, windows that tile, memory",
        f"within the target. {summary['processor']}, one thread, beside other work.",
        "",
        "| planner | traced | quick | configurations | refused | with faults |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in planned.items():
        if name not in STOCK:
            counts = (entry[key] for key in ("exact", "quick", "configurations", "refused", "faulty"))
            lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        "Refused are networks whose weights do not fit the memory, and 3D networks for 2D images.",
        "",
        "Processor time of planning all configurations of a fingerprint (s), and its ratio to nnU-Net's on the same:",
        "",
        "| planner | fingerprints | median | 95 % | most | ratio: median | 95 % | most | where nnU-Net's takes over "
        f"{LONG:g} s: fingerprints | ratio: median | 95 % | most |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in planned.items():
        if "timed" in entry:
            cells = [str(entry["timed"])]
            for key in ("seconds", "times_stock", "times_stock_large"):
                found = entry.get(key, {})
                cells += [str(found["number"])] if "number" in found else [] if found else [""]
                cells += [f"{found[part]:.2f}" if found else "" for part in ("median", "p95", "max")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Voxels of a batch relative to nnU-Net's on the same fingerprint, as planned and without the limit:",
        "",
        "| planner | | fingerprints | median | 95 % | most | without the limit: fingerprints | median | 95 % | most |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in planned.items():
        for kind in ("2d", "3d_fullres"):
            cells = []
            for key in (f"batch_{kind}", f"batch_unlimited_{kind}"):
                found = entry.get(key)
                cells += [str(found["number"])] if found else [""]
                cells += [f"{found[part]:.2f}" if found else "" for part in ("median", "p95", "max")]
            if any(cells):
                lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the log, plans.jsonl")
    parser.add_argument("--count", type=int, default=100, help="fingerprints")
    parser.add_argument("--first", type=int, default=0, help="number of the first fingerprint")
    parser.add_argument("--networks", help="planners without nnUNetPlanner, such as QTUNetT,MiT7; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--unchecked", action="store_true", help="plan only, to compare plans and times")
    parser.add_argument("--batch-ratio", type=float, help="plan with another max_batch_ratio, such as inf")
    parser.add_argument("--quick", action="store_true", help="plan with rough memory, without times")
    parser.add_argument("--report", type=Path, help="write the summary of the log to this path with .json and .md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.batch_ratio is not None:
        TransformerPlanner.max_batch_ratio = options.batch_ratio
    path, started = options.work / "plans.jsonl", time.monotonic()
    if options.report is not None:
        report(read(path), options.report)
        return
    if options.quick:
        plan_quickly()
    else:
        keep_traces()
    names = list(planners())
    if options.networks is not None:
        names = [f"nnUNetPlanner{name}" for name in options.networks.split(",")]
    indices = range(options.first, options.first + options.count)
    with path.open("a") as file:
        for name, index in pending(path, names, indices, options):
            if time.monotonic() - started > options.seconds:
                break
            row = run(name, planners()[name], options.seed, index, not options.unchecked, options.quick)
            row["batch_ratio"] = options.batch_ratio
            print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()
