"""Prediction of whole CTs beside nnU-Net's: time, memory of the process tree, equal voxels.

    python benchmarks/predict_ct.py export --classes 15 --nnunet    # export of 512x512x300 voxels alone
    python benchmarks/predict_ct.py export --classes 105
    python benchmarks/predict_ct.py lengths                         # 100, 300 and 900 slices
    python benchmarks/predict_ct.py command                         # the whole commands, with a small network
    python benchmarks/predict_ct.py start                           # one small image from command to file
    python benchmarks/predict_ct.py images                          # 30 images in one process
    python benchmarks/predict_ct.py needed                          # memory that a package expects, and its peak

Each adds its rows to results/predict_ct.json and writes results/predict_ct.md. The logits of `export` and `lengths` are
made plane by plane, at 1.5 mm for an image of 1.0x0.8x0.8 mm, so that they need no memory of their own here; making
them is not timed. nnU-Net's export gets them as a whole, as its sliding window leaves them. `start --before CHECKOUT`
measures the sources of an earlier version beside these.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results" / "predict_ct"
SCRIPTS = Path(sys.executable).parent
SPACING, PLANNED = (1.0, 0.8, 0.8), 1.5
# planes that a stage of the sliding window finishes: half a patch of 128
SLAB = 64
COARSE, NOISE = (10, 10, 10), 0.3
# runs a command and prints how many modules it imported
COUNTED = """import atexit, sys
atexit.register(lambda: print(len(sys.modules)))
from {module} import {function}
{function}()
"""
COMMANDS = {"nnU-Net": ("nnUNetv2_predict_from_modelfolder",), "ours": ("nnunet-transformers", "predict")}


# ---- measuring ----


def tree_bytes(root: int) -> int:
    """Resident memory of a process and its descendants: what each has alone, and once what they map of files or share.

    Of the latter that of the process with the most; processes that nnU-Net spawns all map PyTorch's libraries.
    """
    found = [kinds for number in family(root) if (kinds := status_bytes(number))]
    shared = [max((kinds[kind] for kinds in found), default=0) for kind in ("RssFile", "RssShmem")]
    return sum(kinds["RssAnon"] for kinds in found) + sum(shared)


def status_bytes(number: int) -> dict[str, int]:
    """Memory of a process by kind, as the kernel reports it; empty if it has ended."""
    try:
        text = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return {}
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(value) for name, value, _ in lines}


def family(root: int) -> list[int]:
    """Numbers of a process and its descendants."""
    try:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    except OSError:
        return [root]
    return [root, *(number for child in children for number in family(int(child)))]


def measure(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command; its seconds, the peak memory of its processes in GB and their number, and what it printed last."""
    start, peak, most, before = time.perf_counter(), 0, 1, resource.getrusage(resource.RUSAGE_CHILDREN)
    with TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            most = max(most, len(family(process.pid)))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {text}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "s": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "GB": round(peak / 1e9, 2),
        "processes": most,
        "said": text.strip().splitlines()[-1:],
    }


def equal_voxels(one: Path, other: Path) -> float:
    import SimpleITK as sitk

    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (one, other)]
    return float((arrays[0] == arrays[1]).mean())


# ---- export alone, in a process of its own ----


def planned_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round(n * mm / PLANNED) for n, mm in zip(shape, SPACING, strict=True))


def make_logits(classes: int, shape: tuple[int, ...], first: int, last: int) -> Any:
    """Planes of smooth fields with noise, the same for every division into slabs; (classes, planes, rows, columns)."""
    import torch

    field = torch.randn(classes, 1, *COARSE, generator=torch.Generator().manual_seed(0)) * 4
    result = torch.empty(classes, last - first, *shape[1:], dtype=torch.half)
    rows, columns = (torch.linspace(-1, 1, n) for n in shape[1:])
    for plane in range(first, last):
        depth = torch.full((1,), 2 * plane / max(1, shape[0] - 1) - 1)
        grid = torch.stack(torch.meshgrid(depth, rows, columns, indexing="ij")[::-1], -1)[None]
        noise = torch.Generator().manual_seed(plane)
        for number in range(classes):
            smooth = torch.nn.functional.grid_sample(field[number][None], grid, align_corners=True)[0, 0, 0]
            result[number, plane - first] = smooth + NOISE * torch.randn(*shape[1:], generator=noise)
    return result


def export(who: str, classes: int, shape: tuple[int, ...], output: Path) -> None:
    """Export made logits and print the seconds."""
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_transformers.export import ImageExport

    torch.set_num_threads(os.cpu_count() or 1)
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": [PLANNED] * 3,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "architecture": {},
    }
    content = {"image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    plans = PlansManager({**content, "plans_name": "", "dataset_name": "", "configurations": {"3d": configuration}})
    labels = {"background": 0, **{f"organ_{number}": number for number in range(1, classes)}}
    dataset = {"labels": labels, "file_ending": ".nii.gz"}
    geometry = {"spacing": SPACING[::-1], "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}
    properties = {
        "sitk_stuff": geometry,
        "spacing": list(SPACING),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
    }
    size = planned_shape(shape)
    if who == "nnU-Net":
        logits = make_logits(classes, size, 0, size[0]).numpy()
        start = clocks()
        export_prediction_from_logits(logits, properties, plans.get_configuration("3d"), plans, dataset, str(output))
        print(*(clocks() - start))
        return
    manager = plans.get_label_manager(dataset)
    ours = ImageExport(plans, plans.get_configuration("3d"), manager, properties, size)
    seconds = np.zeros(2)
    for first in range(0, size[0], SLAB):
        logits = make_logits(classes, size, first, min(first + SLAB, size[0]))
        start = clocks()
        ours.add(logits)
        seconds += clocks() - start
    start = clocks()
    ours.write(str(output), ".nii.gz")
    print(*(seconds + clocks() - start))


def clocks() -> NDArray[np.float64]:
    """Seconds, and those of this process's threads on processors, which other processes hardly change."""
    return np.array([time.perf_counter(), time.process_time()])


def measure_export(who: str, classes: int, shape: tuple[int, ...], output: Path) -> dict[str, Any]:
    numbers = map(str, shape)
    command = [sys.executable, "-W", "ignore", __file__, "only-export", who, str(classes), str(output), *numbers]
    row = measure(command)
    seconds, cpu = (round(float(number), 1) for number in row["said"][0].split())
    return {"who": who, "classes": classes, "shape": list(shape), "s": seconds, "cpu_s": cpu, "GB": row["GB"]}


# ---- whole commands ----


def make_model(folder: Path, classes: int, patch: tuple[int, ...], features: int = 4) -> Path:
    """A model folder of a small U-Net with random weights, for CT at 1.5 mm, as nnU-Net's trainers leave it."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    flat = len(patch) == 2
    dimensions = len(patch)
    architecture = {
        "n_stages": 3,
        "features_per_stage": [features * 2**i for i in range(3)],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 3,
        "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    probabilities = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "ct",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": [PLANNED] * dimensions,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**probabilities, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**probabilities, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": probabilities,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensities = {"mean": 0.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    name = "2d" if flat else "3d_fullres"
    plans = {
        "dataset_name": "Dataset901_CT",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(SPACING),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }
    labels = {"background": 0, **{f"organ_{number}": number for number in range(1, classes)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    model = folder / f"nnUNetTrainer__nnUNetPlans__{name}"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    (model / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [list(SPACING)]}))
    torch.manual_seed(0)
    manager = PlansManager(plans)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(name), 1, classes, False)
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": name},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    return model


def make_image(path: Path, shape: tuple[int, ...]) -> None:
    """An image of smooth intensities in HU."""
    import SimpleITK as sitk
    import torch

    coarse = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1)) * 500
    array = torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0, 0].short().numpy()
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path))


def measure_commands(
    folder: Path, classes: int, patch: tuple[int, ...], shape: tuple[int, ...], who: list[str]
) -> list[dict[str, Any]]:
    model = make_model(folder, classes, patch)
    images = folder / "images"
    images.mkdir()
    make_image(images / "ct_0000.nii.gz", shape)
    rows = []
    for name in who:
        output = folder / name
        command = [str(SCRIPTS / COMMANDS[name][0]), *COMMANDS[name][1:], "-m", str(model), "-i", str(images)]
        command += ["-o", str(output), "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
        # the passes are nnU-Net's own, so that only the rest is compared
        command += ["--batch-size", "1"] if name == "ours" else []
        row = measure(command)
        rows.append({"who": name, "classes": classes, "shape": list(shape), "patch": list(patch), **row})
        del rows[-1]["said"]
    if len(rows) > 1:
        rows[-1]["equal_voxels"] = equal_voxels(*(folder / name / "ct.nii.gz" for name in who))
    return rows


# ---- starting ----


def measure_start(folder: Path, before: Path | None, repeats: int) -> list[dict[str, Any]]:
    """Measure the prediction of one small image by each command, the run of the least processor time of several."""
    classes, patch, shape = 3, (32, 32, 32), (32, 48, 48)
    model = make_model(folder, classes, patch)
    images, package = folder / "images", folder / "package"
    images.mkdir()
    make_image(images / "ct_0000.nii.gz", shape)
    ours = COUNTED.format(module="nnunet_transformers.cli", function="main")
    theirs = COUNTED.format(
        module="nnunetv2.inference.predict_from_raw_data", function="predict_entry_point_modelfolder"
    )
    subprocess.run([sys.executable, "-c", ours, "package", str(model), "-o", str(package)], check=True)
    of_folder = ["-m", model, "-i", images, "-f", "0", "-device", "cpu", "-o"]
    of_package = ["package", "predict", package, images, "--device", "cpu"]
    commands: dict[str, tuple[str, list[Any], dict[str, str]]] = {
        "nnUNetv2_predict": (theirs, of_folder, {}),
        "predict": (ours, ["predict", *of_folder], {}),
        "package predict": (ours, of_package, {}),
    }
    if before is not None:
        earlier = {"PYTHONPATH": str(before)}
        commands["predict, before"] = (ours, ["predict", *of_folder], earlier)
        commands["package predict, before"] = (ours, of_package, earlier)
    rows = []
    for who, (code, arguments, environment) in commands.items():
        output = folder / who
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments), str(output)]
        row = min((measure(command, environment) for _ in range(repeats)), key=lambda row: row["cpu_s"])
        modules = int(row.pop("said")[0])
        is_stock = code == theirs
        equal = None if is_stock else equal_voxels(folder / "nnUNetv2_predict" / "ct.nii.gz", output / "ct.nii.gz")
        shown = {"who": who, "classes": classes, "shape": list(shape), "patch": list(patch)}
        rows.append({**shown, **row, "modules": modules, "equal_voxels": equal})
    return rows


# ---- many images in one process ----


def predict_many(who: str, folder: Path, count: int) -> None:
    """Predict images of several sizes with one model, and print the resident memory after each in MB."""
    import SimpleITK as sitk
    import torch

    from nnunet_transformers.sharing import Options, load_model, load_package, make_package, predict_folder

    model = make_model(folder, 15, (32, 32, 32))
    generator = np.random.default_rng(0)
    arrays = (generator.normal(size=generator.integers(64, 129, 3)).astype(np.float32) for _ in range(count))
    resident = []

    def note(_: Any) -> None:
        resident.append(round(tree_bytes(os.getpid()) / 1e6))

    if who == "load_model":
        segmenter = load_model(model, device="cpu")
        for array in arrays:
            note(segmenter.predict(array, SPACING))
    else:
        images, package = folder / "images", folder / "package"
        images.mkdir()
        for number, array in enumerate(arrays):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(SPACING[::-1])
            sitk.WriteImage(image, str(images / f"ct{number:02}_0000.nii.gz"))
        make_package([model], package, Options())
        predict_folder(load_package(package, torch.device("cpu")), images, folder / "output", report=note)
    print(*resident)


def measure_images(folder: Path, count: int) -> list[dict[str, Any]]:
    rows = []
    for who in ("load_model", "package predict"):
        command = [sys.executable, "-W", "ignore", __file__, "only-images", who, str(folder / who), str(count)]
        row = measure(command)
        resident = [int(number) for number in row.pop("said")[0].split()]
        rows.append({"who": who, "classes": 15, "shape": [128] * 3, "patch": [32] * 3, **row})
        rows[-1] |= {"images": count, "MB": resident}
    return rows


# ---- the memory that a package expects ----

# patch, image and features of the first stage: passes are most of it, or arrays, or slices
NEEDED = (((64, 64, 64), (96, 120, 120), 32), ((32, 32, 32), (200, 256, 256), 4), ((192, 192), (60, 320, 320), 16))


def predict_needed(folder: Path, patch: tuple[int, ...], shape: tuple[int, ...], features: int) -> None:
    """Predict one image in a fresh process; print its estimate, and how much the process grew at its peak, in bytes."""
    import torch

    from nnunet_transformers.cpu import release_freed_memory
    from nnunet_transformers.sharing import Options, load_package, make_package, predict_folder
    from nnunet_transformers.sharing.estimate import needed_bytes

    images, package = folder / "images", folder / "package"
    if not package.is_dir():
        images.mkdir(parents=True)
        make_image(images / "ct_0000.nii.gz", shape)
        make_package([make_model(folder, 15, patch, features)], package, Options())
        return
    models = load_package(package, torch.device("cpu"))
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is then that of what follows
    before = status_bytes(os.getpid())["VmRSS"]
    (result,) = predict_folder(models, images, folder / "output")
    assert not result.problem, result.problem
    peak = status_bytes(os.getpid())["VmHWM"]
    print(needed_bytes(models[0], shape, SPACING), needed_bytes(models[0], shape, SPACING, False), peak - before)


def measure_needed(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number, (patch, shape, features) in enumerate(NEEDED):
        numbers = [str(n) for n in (*patch, *shape, features)]
        command = [sys.executable, "-W", "ignore", __file__, "only-needed", str(folder / str(number)), *numbers]
        measure(command)  # makes the package, which needs memory of its own
        row = measure(command)
        needed, arrays, peak = (int(number) for number in row.pop("said")[0].split())
        rows.append({"who": "package predict", "classes": 15, "shape": list(shape), "patch": list(patch), **row})
        rows[-1] |= {"expected MB": round(needed / 1e6), "without passes": round(arrays / 1e6)}
        rows[-1] |= {"measured MB": round(peak / 1e6), "ratio": round(needed / peak, 2)}
    return rows


# ---- results ----


def save(part: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to the results, in place of earlier ones of the same kind, and write the table."""
    path = RESULTS.with_suffix(".json")
    content = json.loads(path.read_text()) if path.is_file() else {}
    same = ("who", "classes", "shape", "patch")
    kept = [
        old
        for old in content.get(part, [])
        if not any(all(old.get(key) == row.get(key) for key in same) for row in rows)
    ]
    content[part] = kept + rows
    content["machine"] = f"{os.cpu_count()} CPU threads, load {os.getloadavg()[1]:.0f}"
    path.write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        "# Prediction of whole CTs",
        "",
        f"`benchmarks/predict_ct.py` on {content['machine']}. Other processes ran",
    ]
    lines += ["beside it, which changes the seconds, and those of processors hardly.", ""]
    for name, (title, columns) in PARTS.items():
        if name in content:
            lines += [f"## {title}", "", f"| {' | '.join(map(heading, columns))} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(cell(row, column) for column in columns)} |" for row in content[name]] + [""]
    RESULTS.with_suffix(".md").write_text("\n".join(lines))
    for row in rows:
        print(row, flush=True)


COMMON = ("voxels", "classes", "patch", "who", "s", "cpu_s", "GB")
PARTS = {
    "export": ("Export alone", (*COMMON, "equal_voxels")),
    "lengths": ("Export by the number of slices, label map and image's file included", COMMON),
    "command": ("Whole commands, a small network without flips", (*COMMON, "processes", "equal_voxels")),
    "start": ("One small image, from command to file", (*COMMON, "processes", "modules", "equal_voxels")),
    "needed": (
        "Memory that a package expects beyond that of the loaded model, and by how much the process grew",
        (*COMMON, "expected MB", "without passes", "measured MB", "ratio"),
    ),
    "images": ("Images of 64 to 128 voxels per axis in one process", (*COMMON, "images", "MB after each tenth")),
}


def heading(column: str) -> str:
    return {"who": "", "cpu_s": "CPU s", "equal_voxels": "equal voxels"}.get(column, column)


def cell(row: dict[str, Any], column: str) -> str:
    match column:
        case "voxels":
            return "x".join(map(str, row["shape"][::-1]))
        case "patch":
            return "x".join(map(str, row.get("patch", []))) or "-"
        case "equal_voxels":
            return "-" if row.get(column) is None else f"{100 * row[column]:.6f} %"
        case "MB after each tenth":
            return ", ".join(
                f"{number}: {row['MB'][number - 1]}"
                for number in range(1, row["images"] + 1)
                if number == 1 or number % 10 == 0
            )
        case _:
            return str(row.get(column, "-"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("export")
    one.add_argument("--classes", type=int, default=15)
    one.add_argument("--shape", type=int, nargs=3, default=(300, 512, 512))
    one.add_argument("--nnunet", action="store_true", help="nnU-Net's too, which takes 7 GB at 15 classes")
    lengths = parts.add_parser("lengths")
    lengths.add_argument("--classes", type=int, default=15)
    lengths.add_argument("--slices", type=int, nargs="+", default=(100, 300, 900))
    command = parts.add_parser("command")
    command.add_argument("--classes", type=int, default=15)
    command.add_argument("--shape", type=int, nargs=3, default=(150, 256, 256))
    command.add_argument("--patch", type=int, nargs="+", default=(64, 64, 64))
    command.add_argument("--ours", action="store_true", help="without nnU-Net's")
    start = parts.add_parser("start")
    start.add_argument("--before", type=Path, help="checkout of an earlier version")
    start.add_argument("--repeats", type=int, default=2)
    images = parts.add_parser("images")
    images.add_argument("--count", type=int, default=30)
    parts.add_parser("needed")
    expected = parts.add_parser("only-needed")
    expected.add_argument("folder", type=Path)
    expected.add_argument("numbers", type=int, nargs="+")
    many = parts.add_parser("only-images")
    many.add_argument("who")
    many.add_argument("folder", type=Path)
    many.add_argument("count", type=int)
    only = parts.add_parser("only-export")
    only.add_argument("who")
    only.add_argument("classes", type=int)
    only.add_argument("output", type=Path)
    only.add_argument("shape", type=int, nargs=3)
    given = parser.parse_args()
    if given.part == "only-export":
        export(given.who, given.classes, tuple(given.shape), given.output)
        return
    if given.part == "only-needed":
        *patch, a, b, c, features = given.numbers
        predict_needed(given.folder, tuple(patch), (a, b, c), features)
        return
    if given.part == "only-images":
        predict_many(given.who, given.folder, given.count)
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        if given.part == "export":
            who = ["nnU-Net"] * given.nnunet + ["ours"]
            rows = [measure_export(w, given.classes, tuple(given.shape), folder / w) for w in who]
            if given.nnunet:
                rows[-1]["equal_voxels"] = equal_voxels(*(folder / f"{w}.nii.gz" for w in who))
        elif given.part == "lengths":
            rows = [measure_export("ours", given.classes, (n, 512, 512), folder / str(n)) for n in given.slices]
        elif given.part == "start":
            rows = measure_start(folder, given.before, given.repeats)
        elif given.part == "needed":
            rows = measure_needed(folder)
        elif given.part == "images":
            rows = measure_images(folder, given.count)
        else:
            who = list(COMMANDS)[given.ours :]
            rows = measure_commands(folder, given.classes, tuple(given.patch), tuple(given.shape), who)
    save(given.part, rows)


if __name__ == "__main__":
    main()
