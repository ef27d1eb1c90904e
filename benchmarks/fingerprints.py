"""Plan random fingerprints of datasets with every planner, check the plans, and time the planning beside nnU-Net's.

    PYTHONPATH=. python benchmarks/fingerprints.py WORK --count 100                    # WORK/plans.jsonl, resumes
    PYTHONPATH=. python benchmarks/fingerprints.py WORK --report benchmarks/results/fingerprints   # .json and .md

No image is needed: nnU-Net's planners read ``dataset.json`` and the fingerprint alone. A network's memory is traced
again for each planned configuration, from the plan's file and with the channels of the cascade, independently of what
the planner traced; the same pass gives the shapes of the outputs. Each plan starts without the shapes and windows that
the process remembers from others, as a command does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from io import StringIO
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_transformers.architectures import get_network
from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.architectures.layers.window_choice import choose_window
from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.discovery import PLANNERS, find
from nnunet_transformers.plans import memory, tiling
from nnunet_transformers.plans.output_shapes import OutputShapes

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


def plan(planner_class: Any, fingerprint: Fingerprint) -> tuple[dict[str, Any], float]:
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
        forget()
        start = time.process_time()
        planner = planner_class(NAME, gpu_memory_target_in_gb=fingerprint.gigabytes)
        planner.plan_experiment()
        seconds = time.process_time() - start
        return json.loads((preprocessed / f"{planner.plans_identifier}.json").read_text()), seconds


def forget() -> None:
    """Drop what the process remembers from other plans."""
    tiling._plan_tokens.cache_clear()
    choose_window.cache_clear()
    memory._LiveBytes._run = OutputShapes()


def check(plans: dict[str, Any], name: str, fingerprint: Fingerprint) -> tuple[list[str], float]:
    """Find the faults of a configuration; return them with the gigabytes that a training step takes."""
    configuration = plans["configurations"][name]
    channels = fingerprint.channels
    if name == "3d_fullres" and "3d_cascade_fullres" in plans["configurations"]:
        channels += fingerprint.labels - 1
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    arguments = configuration["architecture"]["arch_kwargs"]
    networks, shapes = [], []

    def build() -> torch.nn.Module:
        network = get_network_from_plans(
            configuration["architecture"]["network_class_name"],
            arguments,
            (),
            channels,
            fingerprint.labels,
            deep_supervision=True,
        )
        network.register_forward_hook(
            lambda _, __, out: shapes.extend(tuple(o.shape) for o in (out if isinstance(out, list) else [out]))
        )
        networks.append(network)
        return network

    static, peak = memory.training_peak_bytes(build, channels, patch, batch)
    network = networks[0]
    faults = []
    if static + peak > fingerprint.gigabytes * 1e9 * 1.001:
        faults.append(f"needs {(static + peak) / 1e9:.2f} GB of {fingerprint.gigabytes}")
    if batch < 2:
        faults.append(f"batch of {batch}")
    strides = arguments["strides"]
    total = [prod(stride[axis] for stride in strides) for axis in range(len(patch))]
    if any(n % stride for n, stride in zip(patch, total, strict=True)):
        faults.append(f"patch {patch} is no multiple of {total}")
    # nnU-Net's targets of deep supervision: scales are products of the strides but for the last
    scales = np.cumprod(strides, axis=0)[:-1].tolist() if network.deeply_supervised else [[1] * len(patch)]
    expected = [(batch, fingerprint.labels, *(n // s for n, s in zip(patch, scale, strict=True))) for scale in scales]
    if shapes != expected:
        faults.append(f"outputs {shapes} in place of {expected}")
    if plans["experiment_planner_used"].startswith(("nnUNetPlannerQTUNet", "nnUNetPlannerVTUNet", "nnUNetPlannerUNet")):
        for partition in (m for m in network.modules() if isinstance(m, WindowPartition)):
            if partition.has_padding:
                faults.append(f"windows of {partition.window_size} pad their grid")
    return faults, (static + peak) / 1e9


def run(planner: str, planner_class: Any, seed: int, index: int, is_checked: bool) -> dict[str, Any]:
    """Plan and check a fingerprint; what is found is a row of the log."""
    fingerprint = draw(seed, index)
    row: dict[str, Any] = {"planner": planner, "seed": seed, "index": index, **asdict(fingerprint)}
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            plans, row["seconds"] = plan(planner_class, fingerprint)
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
    for name, configuration in plans["configurations"].items():
        if "patch_size" not in configuration:
            continue
        entry = {key: configuration[key] for key in ("patch_size", "batch_size", "spacing")}
        arguments = configuration["architecture"]["arch_kwargs"]
        entry |= {"strides": arguments["strides"], "windows": arguments.get("window_sizes")}
        entry["checkpointing"] = arguments.get("activation_checkpointing")
        if is_checked and planner not in STOCK:
            try:
                faults, entry["gigabytes"] = check(plans, name, fingerprint)
            except Exception:
                faults = [traceback.format_exc()]
            row["faults"] += [f"{name}: {fault}" for fault in faults]
        row["configurations"][name] = entry
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


def pending(path: Path, names: Sequence[str], seed: int, indices: range) -> Iterator[tuple[str, int]]:
    """Planners and numbers of fingerprints that the log does not have, fingerprint by fingerprint."""
    known = {(row["planner"], row["seed"], row["index"]) for row in read(path)}
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    path, started = options.work / "plans.jsonl", time.monotonic()
    names = list(planners())
    if options.networks is not None:
        names = [f"nnUNetPlanner{name}" for name in options.networks.split(",")]
    indices = range(options.first, options.first + options.count)
    with path.open("a") as file:
        for name, index in pending(path, names, options.seed, indices):
            if time.monotonic() - started > options.seconds:
                break
            row = run(name, planners()[name], options.seed, index, not options.unchecked)
            print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    main()
