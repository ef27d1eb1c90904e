"""Plan random fingerprints of datasets with every planner, check the plans, and time the planning beside nnU-Net's.

    PYTHONPATH=. python benchmarks/fingerprints.py WORK --count 100                    # WORK/plans.jsonl, resumes
    PYTHONPATH=. python benchmarks/fingerprints.py WORK --report benchmarks/results/fingerprints   # .json and .md

No image is needed: nnU-Net's planners read ``dataset.json`` and the fingerprint alone. Networks run forward and
backward on tensors without data while the planner traces their memory, and the shapes of their outputs are kept. A
configuration whose architecture, batch and channels (with the cascade's) are not those of such a trace is traced again.
Each plan starts without the shapes and windows that the process remembers from others, as a command does.

``--quick`` plans more in the same time: the memory of a network is a line through one patch that was traced, nnU-Net's
own part is planned once for all networks, and the networks run forward only. Such plans are checked and not timed.
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
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import get_network
from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.architectures.layers.window_choice import choose_window
from nnunet_transformers.discovery import PLANNERS, find
from nnunet_transformers.plans import memory, planner, tiling
from nnunet_transformers.plans.output_shapes import OutputShapes
from nnunet_transformers.plans.planner import TransformerPlanner

STOCK = {"nnUNetPlanner": ExperimentPlanner, "nnUNetPlannerResEncM": nnUNetPlannerResEncM}
NAME = "Dataset903_Fingerprint"
GIGABYTES = (4, 6, 8, 11, 16, 24, 40, 80)
# a plan that takes longer is named in the report
SLOW = 60.0


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
    def of(cls, build: Callable[[], torch.nn.Module], channels: int, patch: Sequence[int], batch: int) -> Trace:
        """Trace a step as ``training_peak_bytes`` and keep what the network returns."""
        networks, shapes = [], []

        def keep(_: Any, __: Any, outputs: Any) -> None:
            shapes.extend(tuple(o.shape) for o in (outputs if isinstance(outputs, list) else [outputs]))

        def build_watched() -> torch.nn.Module:
            networks.append(build())
            networks[0].register_forward_hook(keep)
            return networks[0]

        peaks = memory.training_peak_bytes(build_watched, channels, patch, batch)
        return cls(networks[0], {}, shapes, peaks)


# of the plan in the making, by input channels, patch and batch
TRACES: dict[Any, Trace] = {}


def keep_traces() -> None:
    """Let the planner's traces remain in ``TRACES``."""

    def traced(build: Any, channels: int, patch: Sequence[int], batch: int) -> tuple[int, int]:
        TRACES[channels, tuple(patch), batch] = trace = Trace.of(build, channels, patch, batch)
        return trace.peaks

    peak_bytes = TransformerPlanner._peak_bytes

    def with_arguments(self: Any, tokens: Any, options: Any, channels: int, batch: int) -> tuple[int, int]:
        found = peak_bytes(self, tokens, options, channels, batch)
        key = channels, tokens.patch_size, batch
        arguments = json.loads(json.dumps(self._arguments(tokens, options)))
        TRACES[key] = replace(TRACES[key], arguments=arguments)
        return found

    planner.training_peak_bytes = traced
    TransformerPlanner._peak_bytes = with_arguments


def plan_quickly() -> None:
    """Estimate memory by a line over the voxels of a batch, and plan nnU-Net's own part once for all networks."""
    lines: dict[Any, tuple[int, float]] = {}
    peak_bytes, stock = TransformerPlanner._peak_bytes, ExperimentPlanner.get_plans_for_configuration
    known: dict[str, Any] = {}

    def on_a_line(self: Any, tokens: Any, options: Any, channels: int, batch: int) -> tuple[int, int]:
        key = self.network_name, len(tokens.patch_size), tokens.num_stages, tuple(options)
        if key not in lines:
            static, peak = peak_bytes(self, tokens, options, channels, 2)
            # logits and what the loss makes of them grow with the labels
            per_voxel = peak / prod(tokens.patch_size) / 2 - 24 * self._labels.num_segmentation_heads
            lines[key] = static, max(50.0, per_voxel)
        static, per_voxel = lines[key]
        per_voxel += 24 * self._labels.num_segmentation_heads + 4 * channels
        return static, int(batch * prod(tokens.patch_size) * per_voxel)

    def shared(self: Any, *arguments: Any) -> dict[str, Any]:
        spacing, shape, identifier, voxels, _ = arguments
        stated = (self.dataset_json, list(spacing), list(shape), voxels, self.UNet_vram_target_GB)
        key = json.dumps(stated, default=float)
        if key not in known:
            if len(known) > 200:
                known.clear()
            known[key] = stock(self, *arguments)
        return {**deepcopy(known[key]), "data_identifier": identifier}

    TransformerPlanner._peak_bytes = on_a_line
    ExperimentPlanner.get_plans_for_configuration = shared


def run_forward(build: Callable[[], torch.nn.Module], channels: int, patch: Sequence[int]) -> Trace:
    """Run a network forward alone, on one sample."""
    with without_data():
        network, image = build(), torch.empty(1, channels, *patch)
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
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    arguments = configuration["architecture"]["arch_kwargs"]
    trace = TRACES.get((channels, tuple(patch), batch))
    path = configuration["architecture"]["network_class_name"]

    def build() -> torch.nn.Module:
        return get_network_from_plans(path, arguments, (), channels, fingerprint.labels, deep_supervision=True)

    if is_quick:
        trace = run_forward(build, channels, patch)
    elif trace is None or trace.arguments != arguments:
        trace = Trace.of(build, channels, patch, batch)
    network, shapes = trace.network, trace.shapes
    faults = []
    if trace.bytes > fingerprint.gigabytes * 1e9:
        faults.append(f"needs {trace.bytes / 1e9:.2f} GB of {fingerprint.gigabytes}")
    if batch < 2:
        faults.append(f"batch of {batch}")
    strides = arguments["strides"]
    total = [prod(stride[axis] for stride in strides) for axis in range(len(patch))]
    if any(n % stride for n, stride in zip(patch, total, strict=True)):
        faults.append(f"patch {patch} is no multiple of {total}")
    # nnU-Net's targets of deep supervision: scales are products of the strides but for the last
    scales = np.cumprod(strides, axis=0)[:-1].tolist() if network.deeply_supervised else [[1] * len(patch)]
    samples = 1 if is_quick else batch
    expected = [(samples, fingerprint.labels, *(n // s for n, s in zip(patch, scale, strict=True))) for scale in scales]
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


def pending(path: Path, names: Sequence[str], seed: int, indices: range, is_quick: bool) -> Iterator[tuple[str, int]]:
    """Planners and numbers of fingerprints that the log does not have, fingerprint by fingerprint."""
    known = {(row["planner"], row["seed"], row["index"]) for row in read(path) if row["quick"] == is_quick}
    for index in indices:
        yield from ((name, index) for name in names if (name, seed, index) not in known)


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
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.batch_ratio is not None:
        TransformerPlanner.max_batch_ratio = options.batch_ratio
    if options.quick:
        plan_quickly()
    else:
        keep_traces()
    path, started = options.work / "plans.jsonl", time.monotonic()
    names = list(planners())
    if options.networks is not None:
        names = [f"nnUNetPlanner{name}" for name in options.networks.split(",")]
    indices = range(options.first, options.first + options.count)
    with path.open("a") as file:
        for name, index in pending(path, names, options.seed, indices, options.quick):
            if time.monotonic() - started > options.seconds:
                break
            row = run(name, planners()[name], options.seed, index, not options.unchecked, options.quick)
            print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()
