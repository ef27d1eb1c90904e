"""`pretrain prepare` on damaged files, killed and resumed: what is stored, what is named, what it costs.

    python benchmarks/prepare.py --radiographs 20000 --volumes 40 --size 300x250    # results/prepare.json and .md

Writes synthetic radiographs as JPEG, one in twenty of them broken in one of ten ways, and volumes of the size of a CT.
`pretrain prepare` is killed at random times, with its workers, and started again until it ends. Afterwards every good
image must be stored once and read as an uninterrupted run stores it, every broken one be named with a reason, and no
file of the source be missing in the manifest. Beside it the same images with nnU-Net's own preprocessing and files.

The uninterrupted folder is kept as hashes, so that the disk has to hold the source and one prepared folder: 9 GB for
the line above.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nnunet_transformers.benchmarking.environment import processor_name
from nnunet_transformers.pretraining.data import PreparedImages, read_index
from nnunet_transformers.pretraining.data.manifest import read_lines

COMMAND = [sys.executable, "-c", "from nnunet_transformers.cli import main; main()"]
BROKEN_SHARE = 20
KINDS = {"2d": "radiographs", "3d": "volumes"}
# images of each kind that are compared with nnU-Net's own preprocessing
COMPARED = 40


def draw_radiograph(number: int, size: tuple[int, int]) -> NDArray[Any]:
    """A smooth field with noise, (rows, columns), 8 bits: it compresses as a radiograph does, not as its content."""
    rng = np.random.default_rng(number)
    coarse = gaussian_filter(rng.normal(size=(32, 32)), 2)
    field = sitk.GetArrayFromImage(sitk.Expand(sitk.GetImageFromArray(coarse), (1 + size[1] // 32, 1 + size[0] // 32)))
    field = field[: size[0], : size[1]]
    field = (field - field.min()) / np.ptp(field)
    noise = rng.normal(size=size).astype(np.float32)
    return np.clip(20 + 200 * field + 4 * noise, 0, 255).astype(np.uint8)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2:40] = bytes(38)
    path.write_bytes(content)


def _rgba(path: Path) -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 3] = np.random.default_rng(0).integers(0, 255, (64, 64))
    Image.fromarray(pixels).save(path, "PNG")


# the file is a JPEG when it is called
BREAKS: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "empty": lambda path: path.write_bytes(b""),
    "a text": lambda path: path.write_text("not an image"),
    "damaged header": _damage,
    "only the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "black": lambda path: Image.new("L", (64, 64)).save(path, "JPEG"),
    "one colour": lambda path: Image.new("RGB", (64, 64), (90, 20, 40)).save(path, "JPEG"),
    "black with transparency": _rgba,
    "in colour": lambda path: Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    ).save(path, "JPEG"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def write_source(
    folder: Path, radiographs: int, volumes: int, size: tuple[int, int]
) -> tuple[set[str], dict[str, str]]:
    """Write the source; return the keys of the good images, and how each of the others is broken."""
    good, broken = set(), {}
    ways = list(BREAKS)
    for number in range(radiographs):
        path = folder / f"p{number % 10}" / f"radiograph_{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_radiograph(number, size)).save(path, "JPEG", quality=92)
        key = str(path.relative_to(folder))
        if number % BROKEN_SHARE == BROKEN_SHARE - 1:
            way = ways[number // BROKEN_SHARE % len(ways)]
            BREAKS[way](path)
            broken[key] = way
        else:
            good.add(key)
    for number in range(volumes):
        path = folder / "volumes" / f"ct_{number:03d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(draw_ct(number), str(path))
        good.add(str(path.relative_to(folder)))
    for name in ("notes.txt", "table.csv", ".hidden", "labels/mask.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    return good, broken


def draw_ct(number: int, shape: tuple[int, int, int] = (160, 512, 512)) -> sitk.Image:
    """A body in air, HU, of the size of a CT."""
    rng = np.random.default_rng(number)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    inside = ((y - shape[1] / 2) / (0.35 * shape[1])) ** 2 + ((x - shape[2] / 2) / (0.45 * shape[2])) ** 2 < 1
    plane = gaussian_filter(rng.normal(0, 60, shape[1:]).astype(np.float32), 2)
    voxels = np.where(inside, 40 + 4 * plane, -1000) + 0 * z
    noise = rng.integers(-20, 20, shape, dtype=np.int16)
    image = sitk.GetImageFromArray((voxels + noise).astype(np.int16))
    image.SetSpacing((0.8, 0.8, float(rng.choice((1.5, 2.0, 2.25)))))
    return image


def prepare(source: Path, output: Path, processes: int, kill_after: float | None) -> tuple[int | None, str]:
    """Run the command in a session of its own; kill that after some seconds. Returns its exit code and output."""
    words = ["pretrain", "prepare", str(source), str(output), "-np", str(processes), "--patch-size", "96,224,224"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return process.returncode, log.read()


def parts_of(folder: Path) -> list[str]:
    """Return the subfolders of a prepared folder that hold images of one kind; the folder itself if it has one kind."""
    return [part for part in ("2d", "3d") if (folder / part).is_dir()] or [""]


def hashes(folder: Path) -> dict[str, str]:
    """Return a hash of the voxels of every stored image, by part and name."""
    found = {}
    for part in parts_of(folder):
        images = PreparedImages(folder / part)
        for name in images.names:
            voxels = images.read(name, (0, 0, 0), images.shapes[name][1:])
            found[f"{part}/{name}"] = hashlib.sha256(voxels.numpy().tobytes()).hexdigest()
    return found


def check(output: Path, good: set[str], broken: dict[str, str], source: Path) -> dict[str, Any]:
    """Count what is stored, named, lost and stored twice; read every stored image as a whole."""
    stored: Counter[str] = Counter()
    skipped, ignored = {}, set()
    read = 0
    for part in (output / part for part in parts_of(output)):
        images = PreparedImages(part)
        for case in read_index(part).cases:
            stored[case.key] += 1
            voxels = images.read(case.name, (0, 0, 0), images.shapes[case.name][1:])
            read += int(bool(voxels.isfinite().all()) and float(voxels.std()) > 0)
    for line in read_lines(output):
        if "skipped" in line:
            skipped[line["key"]] = line["reason"]
        if "ignored" in line:
            ignored.add(line["ignored"])
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    return {
        "stored": len(stored),
        "good_but_not_stored": sorted(good - set(stored))[:5],
        "stored_twice": sorted(key for key, number in stored.items() if number > 1)[:5],
        "read_whole_and_finite": read,
        "broken": len(broken),
        "broken_and_named": len(set(broken) & set(skipped)),
        "broken_but_stored": sorted(set(broken) & set(stored))[:5],
        "reasons": {broken[key]: reason.replace(f"{source}/", "") for key, reason in skipped.items() if key in broken},
        "files_of_the_source": len(files),
        "files_lost": sorted(files - set(stored) - set(skipped) - ignored)[:5],
    }


def peak_memory(process: subprocess.Popen[str], stop: Callable[[], bool]) -> int:
    """Return the most memory of one process of a session, bytes, as long as it runs."""
    most = 0
    while not stop():
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == process.pid:
                    lines = (status.parent / "status").read_text().splitlines()
                    most = max([most, *(1024 * int(v.split()[1]) for v in lines if v.startswith("VmHWM"))])
            except (OSError, ValueError, IndexError):
                continue
        time.sleep(0.2)
    return most


def measured(source: Path, output: Path, processes: int) -> dict[str, Any]:
    """Time, processor time and memory of an uninterrupted run."""
    words = ["pretrain", "prepare", str(source), str(output), "-np", str(processes), "--patch-size", "96,224,224"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )
    most = peak_memory(process, lambda: process.poll() is not None)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "exit": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(used, 1),
        "peak_bytes_of_a_process": most,
        **space(output),
    }


def space(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(512 * path.stat().st_blocks for path in files)}


def nnunet(source: Path, prepared: Path, output: Path, part: str, limit: int) -> dict[str, Any]:
    """nnU-Net's own preprocessing and files for some of the images, in this process, by the folder's plan."""
    index = read_index(prepared / part)
    assert index.plans is not None and index.configuration is not None
    manager = PlansManager(index.plans)
    configuration = manager.get_configuration(index.configuration)
    preprocessor, number = DefaultPreprocessor(verbose=False), 0
    output.mkdir()
    before, start = time.process_time(), time.perf_counter()
    for case in index.cases[:limit]:
        preprocessor.run_case_save(
            str(output / case.name), [str(source / case.key)], None, manager, configuration, {"labels": {}}
        )
        number += 1
    cpu, seconds = time.process_time() - before, time.perf_counter() - start
    used = space(output)
    shutil.rmtree(output)
    return {
        "images": number,
        "cpu_seconds_per_image": round(cpu / number, 3),
        "seconds_per_image": round(seconds / number, 3),
        "files_per_image": used["files"] / number,
        "bytes_per_image": round(used["bytes"] / number),
    }


def as_markdown(result: dict[str, Any]) -> str:
    killed, whole, own = result["killed"], result["whole"], result["nnunet"]
    lost = len(killed["good_but_not_stored"]) + len(killed["files_lost"])
    lines = [
        f"{result['radiographs']} radiographs (JPEG, {result['size']}), one in {BROKEN_SHARE} of them broken in "
        f"{len(BREAKS)} ways, and {result['volumes']} volumes of 512x512x160; {result['processes']} processes, "
        f"{result['machine']}, {os.cpu_count()} cores shared with other work.",
        "",
        "| | killed and resumed |",
        "|---|---|",
        f"| kills | {result['kills']}, after {', '.join(f'{s:.0f}' for s in result['killed_after_s'])} s |",
        f"| good images, stored | {result['good']}, {killed['stored']} |",
        f"| stored images that are read whole and finite | {killed['read_whole_and_finite']} |",
        f"| stored twice | {len(killed['stored_twice'])} |",
        f"| broken images, named with a reason | {killed['broken']}, {killed['broken_and_named']} |",
        f"| files of the source, lost | {killed['files_of_the_source']}, {lost} |",
        f"| equal to an uninterrupted run | {result['equal']} of {killed['stored']} |",
        "",
        "| broken how | reason |",
        "|---|---|",
        *(f"| {way} | {reason[:100]} |" for way, reason in killed["reasons"].items()),
        "",
        "| | seconds | CPU seconds | memory of a process, GB | files | MB |",
        "|---|---|---|---|---|---|",
        f"| uninterrupted | {whole['seconds']:.0f} | {whole['cpu_seconds']:.0f} | "
        f"{whole['peak_bytes_of_a_process'] / 1e9:.2f} | {whole['files']} | {whole['bytes'] / 1e6:.0f} |",
        "",
        "| nnU-Net's own preprocessing, one process | images | CPU s per image | files per image | MB per image |",
        "|---|---|---|---|---|",
    ]
    for part, row in own.items():
        lines.append(
            f"| {KINDS[part]} | {row['images']} | {row['cpu_seconds_per_image']:.2f} | "
            f"{row['files_per_image']:.0f} | {row['bytes_per_image'] / 1e6:.1f} |"
        )
    for part, (files, size) in result["own_per_image"].items():
        lines.append(f"| the same {KINDS[part]} by `prepare` | | | {files:.3f} | {size / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radiographs", type=int, default=2000)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--size", default="600x500", help="rows and columns of a radiograph")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="scratch folder; a temporary one by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "prepare")
    options = parser.parse_args()
    rows, columns = (int(v) for v in options.size.split("x"))
    work = options.folder or Path(tempfile.mkdtemp())
    source = work / "raw"
    good, broken = write_source(source, options.radiographs, options.volumes, (rows, columns))
    print(f"{len(good)} good images, {len(broken)} broken", flush=True)
    whole = measured(source, work / "whole", options.processes)
    print(whole, flush=True)
    parts, expected = parts_of(work / "whole"), hashes(work / "whole")
    own = {
        part or "2d": nnunet(source, work / "whole", work / f"nnunet_{part}", part, 2 if part == "3d" else COMPARED)
        for part in parts
    }
    shutil.rmtree(work / "whole")
    # all kills fall into the time that the work takes
    draw, after = random.Random(options.seed), []
    code: int | None = None
    for _ in range(options.kills):
        after.append(draw.uniform(0.6, 1) * whole["seconds"] / (options.kills + 1))
        code, text = prepare(source, work / "killed", options.processes, after[-1])
        print(f"after {after[-1]:.0f} s: exit {code}", flush=True)
        if code == 0:
            after.pop()
            break
    if code != 0:
        code, text = prepare(source, work / "killed", options.processes, None)
    print(text[-600:], flush=True)
    found = check(work / "killed", good, broken, source)
    stored, own_per_image = hashes(work / "killed"), {}
    equal = sum(stored.get(name) == value for name, value in expected.items())
    for part in parts:
        used, number = space(work / "killed" / part), sum(name.startswith(f"{part}/") for name in stored)
        own_per_image[part or "2d"] = (used["files"] / number, used["bytes"] / number)
    result = {
        "radiographs": options.radiographs,
        "volumes": options.volumes,
        "size": options.size,
        "processes": options.processes,
        "machine": processor_name(),
        "good": len(good),
        "kills": len(after),
        "killed_after_s": after,
        "exit": code,
        "whole": whole,
        "killed": found,
        "equal": equal,
        "own_per_image": own_per_image,
        "nnunet": own,
    }
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(as_markdown(result))
    print(as_markdown(result))
    if options.folder is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
