"""A model of two folds from training to a fresh environment, and what it predicts there beside nnUNetv2_predict.

    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
    python benchmarks/sharing.py FOLDER

Trains QT-UNet T for a few iterations on two folds of a planned Dataset004_Hippocampus, packages them with this
repository's wheel, installs the pinned requirements into a new virtual environment, and segments ten cases there:
network off, another working folder, the package read-only. Prints sizes, times and whether labels are the same bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.sharing import verify
from nnunet_transformers.trainers.trainer import TransformerTrainer

ROOT = Path(__file__).parents[1]
DATASET, TRAINER, PLANS = "Dataset004_Hippocampus", "nnUNetTrainerQTUNet_1epoch", "nnUNetQTUNetTPlans"
FOLDS, CASES = ("0", "1"), 10
# voxels per axis of an image to compare the estimate with; one fold and no flips
LARGE = (128, 128, 128)
# no connection gets through, whatever asks for it
NO_NETWORK = """import socket
def refuse(*_, **__):
    raise OSError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


# runs the entry point and prints the most memory that it had, in bytes
MEASURED = """import atexit, resource, runpy, sys
atexit.register(lambda: print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: object, **environment: str) -> tuple[str, float]:
    """Run a command in another working folder, a variable that is empty unset; returns its output and seconds."""
    start = time.perf_counter()
    print(f"$ {' '.join(map(str, command))}", flush=True)
    env = {name: value for name, value in {**os.environ, **environment}.items() if value}
    result = subprocess.run([str(c) for c in command], env=env, cwd="/", capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return result.stdout, time.perf_counter() - start


def train(iterations: int) -> Path:
    """Two folds, a few iterations each; returns the model's folder."""
    TransformerTrainer.default_iterations = iterations
    for fold in FOLDS:
        trainer = get_trainer_from_args("4", "3d_fullres", int(fold), TRAINER, PLANS, device=torch.device("cpu"))
        trainer.run_training()
    return Path(trainer.output_folder_base)


def install(folder: Path, requirements: Path) -> Path:
    """A new environment with the pinned requirements; returns its interpreter."""
    uv = shutil.which("uv")
    venv.create(folder, symlinks=True, with_pip=uv is None)
    python = folder / "bin" / "python"
    installer = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    run(*installer, "--quiet", "--requirement", requirements)
    return python


def _seconds(said: str) -> list[float]:
    return [float(s) for s in re.findall(r": (\d+\.\d) s$", said, flags=re.MULTILINE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to work in; made")
    parser.add_argument("--iterations", type=int, default=10)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True)

    # in a process of its own, which gives its memory back
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        model = pool.submit(train, arguments.iterations).result()
    builder = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT]
    run(*builder)
    (wheel,) = (folder / "dist").glob("*.whl")
    # its own metadata says what is to be pinned
    target = folder / "wheel"
    shutil.unpack_archive(wheel, target, "zip")
    cli = [sys.executable, "-c", "from nnunet_transformers.cli import main; main()"]
    package = folder / "package"
    said, seconds = run(*cli, "package", model, "-f", *FOLDS, "-o", package, "--wheel", wheel, PYTHONPATH=str(target))
    print(said.rstrip())
    print(
        f"packaged in {seconds:.0f} s, {sum(p.stat().st_size for p in package.rglob('*') if p.is_file()) / 1e6:.1f} MB"
    )

    images = folder / "images"
    images.mkdir()
    for path in sorted((Path(os.environ["nnUNet_raw"]) / DATASET / "imagesTr").glob("*.nii.gz"))[:CASES]:
        shutil.copy(path, images)
    start = time.perf_counter()
    python = install(folder / "environment", package / "requirements.txt")
    installed = time.perf_counter() - start
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    for path in [package, *package.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    clean = {name: "" for name in os.environ if name.startswith(("nnUNet", "PYTHON"))} | {"PYTHONWARNINGS": "ignore"}
    clean["nnUNet_def_n_proc"] = os.environ.get("nnUNet_def_n_proc", "2")
    said, seconds = run(python, package / "predict.py", images, folder / "ours", "--device", "cpu", **clean)
    verify(package)  # root could have written into it all the same
    cases = _seconds(said)
    first = installed + seconds - sum(cases[1:])
    print(f"installed in {installed:.0f} s, first segmentation after {first:.0f} s, {CASES} cases in {seconds:.0f} s")

    large = folder / "large"
    large.mkdir()
    noise = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(large / "noise_0000.nii.gz"))
    options = ("-f", "0", "--disable-tta", "--device", "cpu")
    command = [python, "-c", "from nnunet_transformers.cli import main; main()", "package", "estimate", package]
    estimated, _ = run(*command, "--size", ",".join(map(str, LARGE)), *options, **clean)
    said, _ = run(python, "-c", MEASURED, package / "predict.py", large, folder / "large_output", *options, **clean)
    peak = int(re.findall(r"^peak (\d+)$", said, flags=re.MULTILINE)[0])
    print(f"estimate for {LARGE}: {estimated.strip()}; measured: {_seconds(said)[0]:.0f} s and {peak / 1e9:.1f} GB")

    theirs = [
        Path(sys.executable).parent / "nnUNetv2_predict_from_modelfolder",
        "-m",
        model,
        "-i",
        images,
        "-f",
        *FOLDS,
    ]
    run(*theirs, "-o", folder / "theirs", "-device", "cpu", "-npp", 1, "-nps", 1)
    names = sorted(path.name for path in (folder / "ours").glob("*.nii.gz"))
    same = sum((folder / "ours" / name).read_bytes() == (folder / "theirs" / name).read_bytes() for name in names)
    print(f"{same} of {len(names)} segmentations are the bytes of nnUNetv2_predict_from_modelfolder")


if __name__ == "__main__":
    main()
