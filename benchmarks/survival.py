"""Commands that write, run in forks of a process that has imported everything, and what is looked at afterwards.

Used by kills.py, full_disk.py and two_writers.py, whose runs are of the same small dataset and models.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

# as the script of the command does, which spawned workers import
import nnunet_transformers.cli  # noqa: F401

DATASET, CONFIGURATION = "Dataset904_Kills", "3d_fullres"
PLANNER, TRAINER, PLANS = "nnUNetPlannerQTUNetT", "nnUNetTrainerQTUNet_5epochs", "nnUNetQTUNetTPlans"
MODEL = f"{TRAINER}__{PLANS}__{CONFIGURATION}"
NETWORK = '{"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4, "drop_path_rate": 0}'
FIT = [
    *("--data.init_args.num_workers=0", "--data.init_args.batch_size=2", "--trainer.max_epochs=3"),
    *("--trainer.accelerator=cpu", "--trainer.default_root_dir=run", "--trainer.enable_progress_bar=false"),
    *("--trainer.log_every_n_steps=1", "--trainer.callbacks+=nnunet_transformers.runs.state.StepState"),
    "--trainer.callbacks.init_args.interval=0:0:0",
]
PRETRAIN = [
    *("pretrain", "fit", "--config", "qt_ssl_in_task", "--data.init_args.folder=prepared"),
    *("--data.init_args.samples_per_epoch=6", "--model.init_args.patch_size=[16,16,16]"),
    *("--model.init_args.warmup_epochs=1", f"--model.init_args.network_overrides={NETWORK}", *FIT),
    *("--trainer.accumulate_grad_batches=1", "--trainer.logger=CSVLogger", "--trainer.logger.init_args.save_dir=run"),
]
CLASSIFY = ["classify", "fit", "prepared", "labels.csv", "--config", "default", "--encoder", "first/encoder.pth", *FIT]
MODEL_FOLDER = f"results/{DATASET}/{MODEL}"


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        words: of the command line, run in the scratch folder.
        makes: file or folder that it makes at its end; where it is there, the command is done.
        again: further words to go on after a kill; None repeats the command as it is.
        results: pattern of the files that must equal those of an uninterrupted run.
    """

    words: Sequence[str]
    again: Sequence[str] = ()
    results: str = ""
    makes: str = ""


COMMANDS = {
    "prepare": Command(
        ["pretrain", "prepare", f"raw/{DATASET}", "out", "-np", "2"], results="out/*.b2nd", makes="out/index.json"
    ),
    "pretrain": Command(PRETRAIN, ["--ckpt_path=last"], "run/*.pth"),
    "classify": Command(CLASSIFY, ["--ckpt_path=last"], "run/*.pth"),
    "train": Command(
        ["nnUNetv2_train", "904", CONFIGURATION, "0", "-tr", TRAINER, "-p", PLANS, "-device", "cpu"], ["--c"]
    ),
    "predict": Command(
        [
            *("predict", "-m", MODEL_FOLDER, "-i", f"raw/{DATASET}/imagesTr", "-o", "out", "-f", "0"),
            *("-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"),
        ],
        ["--continue_prediction"],
        "out/*.nii.gz",
    ),
    "attach": Command(
        ["attach", "first/encoder.pth", "-d", "904", "-p", PLANS, "-o", "attached", "--min-coverage", "0"], ["--force"]
    ),
    "package": Command(["package", "make", MODEL_FOLDER, "-o", "out"], results="out/**/*.pth", makes="out"),
    "export-stock": Command(
        ["export-stock", MODEL_FOLDER, "-o", "out"],
        results="out/**/*.pth",
        makes=f"out/nnUNetTrainer__{PLANS}__{CONFIGURATION}",
    ),
}


def in_child(scratch: Path, run: Callable[[], None], log: Path) -> tuple[int, int | None]:
    """Run a function in a fork of this process, with a session of its own; return its session and exit status."""
    child = os.fork()
    if not child:
        status = 70
        try:
            os.setsid()
            os.chdir(scratch)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            run()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException as error:
            import traceback

            traceback.print_exception(error)
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        found, raw = os.waitpid(child, os.WNOHANG)
        if found:
            return child, os.waitstatus_to_exitcode(raw)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return child, None


def run_command(words: Sequence[str]) -> None:
    """Run a command in this process."""
    from nnunetv2.run.run_training import run_training_entry

    from nnunet_transformers import cli

    if words[0] == "nnUNetv2_train":
        sys.argv = list(words)
        run_training_entry()
    else:
        sys.argv = ["nnunet-transformers", *words]
        cli.main()


def count_writes(scratch: Path, at: int | None, delay: float, counter: Path) -> None:
    """Count writes of this process below a folder, and kill it at one of them."""
    number, process, root = 0, os.getpid(), str(scratch)

    def is_write(event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            path, _, flags = str(arguments[0]), *arguments[1:]
            is_below = path.startswith(root) or not os.path.isabs(path)
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return bool(writes) and is_below and path != str(counter)
        return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")

    def kill() -> None:
        os.kill(process, signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal number
        if os.getpid() != process or not is_write(event, arguments):
            return
        number += 1
        if at is None:
            counts.seek(0)
            counts.write(f"{number}\n")
            counts.flush()
        elif number == at and delay:
            threading.Timer(delay, kill).start()
        elif number == at:
            kill()

    counts = open(counter, "w")  # noqa: SIM115  # until the process ends
    sys.addaudithook(hook)


def broken(path: Path) -> str | None:
    """Return why a file cannot be read to its end; None if it can, or has no end that could be missing."""
    try:
        if path.name.endswith((".pth", ".ckpt", ".npz")):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
                return f"{damaged} is damaged" if damaged else None
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                file.read()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pkl":
            pickle.loads(path.read_bytes())
        elif path.suffix == ".b2nd":
            import blosc2

            blosc2.open(str(path))[...]
    except Exception as error:
        return repr(error)[:200]
    return None


def is_partial(path: Path, scratch: Path) -> bool:
    return any(".partial" in part or part.endswith(".lease") for part in path.relative_to(scratch).parts)


def session(leader: int) -> list[str]:
    """Return the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            text = stat.read_text()
            state, _, _, of = text.rpartition(")")[2].split()[:4]
            if int(of) == leader and state != "Z":
                found.append(f"{stat.parent.name} {text.partition('(')[2].rpartition(')')[0]}")
    return found


def orphans(leader: int, seconds: float = 10) -> list[str]:
    """Return the processes of a session that are still alive after some seconds, and kill them."""
    end = time.monotonic() + seconds
    while (found := session(leader)) and time.monotonic() < end:
        time.sleep(0.2)
    for line in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    return found


def state_step(scratch: Path) -> int | None:
    """Return the optimiser step of a run's state."""
    import torch

    file = scratch / "run" / "last.ckpt"
    return int(torch.load(file, weights_only=True)["global_step"]) if file.is_file() else None


def logs(scratch: Path) -> set[Path]:
    """Return the files of logged metrics."""
    return set((scratch / "run").rglob("metrics.csv"))


def logged_steps(files: set[Path]) -> list[int]:
    """Return the optimiser steps that are logged in files."""
    steps = []
    for file in files:
        lines = file.read_text().splitlines()
        column = lines[0].split(",").index("step")
        steps += [int(line.split(",")[column]) for line in lines[1:]]
    return steps


def content(path: Path) -> Any:
    """Return what is compared of a result: weights, voxels or bytes."""
    import blosc2
    import torch

    if path.suffix == ".pth":
        found = torch.load(path, weights_only=False)
        weights = next(found[name] for name in ("weights", "network_weights") if name in found)
        return {name: value.numpy() for name, value in weights.items()}
    if path.suffix == ".b2nd":
        return {"": blosc2.open(str(path))[...]}
    return {"": sitk.GetArrayFromImage(sitk.ReadImage(str(path)))}


def differing(scratch: Path, whole: dict[str, Any], pattern: str) -> list[str]:
    """Return the results that an uninterrupted run does not have, or has otherwise."""
    found = {str(p.relative_to(scratch)): content(p) for p in scratch.glob(pattern)} if pattern else {}
    if found.keys() != whole.keys():
        return sorted(found.keys() ^ whole.keys())
    return [
        name
        for name, value in found.items()
        if any(not np.array_equal(value[key], whole[name][key]) for key in value.keys() | whole[name].keys())
    ]


def set_up(scratch: Path) -> None:
    """Write a dataset, its plan, prepared images, an encoder, labels and a trained model."""
    rng, raw = np.random.default_rng(0), scratch / "raw" / DATASET
    grid = np.stack(np.meshgrid(*(np.arange(20),) * 3, indexing="ij"))
    rows = []
    for case in range(6):
        label = (((grid - rng.uniform(8, 12, 3)[:, None, None, None]) ** 2).sum(0) < 30).astype(np.uint8)
        image = (label * (1 + case % 2) + rng.normal(0, 0.3, label.shape)).astype(np.float32)
        for array, name in ((image, f"imagesTr/case_{case}_0000"), (label, f"labelsTr/case_{case}")):
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(raw / f"{name}.nii.gz"))
        rows.append(f"case_{case},{'ab'[case % 2]},{'train' if case < 4 else 'val'}")
    (scratch / "labels.csv").write_text("\n".join(["image,label,split", *rows]) + "\n")
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 6}
    (raw / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    binaries = Path(sys.executable).parent
    plan: list[Path | str] = [
        binaries / "nnUNetv2_plan_and_preprocess",
        "-d",
        "904",
        "-pl",
        PLANNER,
        "-c",
        CONFIGURATION,
        "-np",
        "1",
    ]
    own: list[Path | str] = [binaries / "nnunet-transformers"]
    first = [word.replace("default_root_dir=run", "default_root_dir=first") for word in PRETRAIN]
    commands: tuple[list[Path | str], ...] = (
        [*plan, "-npfp", "1", "-gpu_memory_target", "2"],
        [*own, *COMMANDS["prepare"].words[:3], "prepared"],
        [*own, *first],
    )
    for words in commands:
        subprocess.run(words, cwd=scratch, check=True, capture_output=True)
    (scratch / "results").mkdir(exist_ok=True)


@contextlib.contextmanager
def workplace(folder: Path | None = None) -> Iterator[Path]:
    """A scratch folder with nnU-Net's folders in it, also for the processes that are started.

    Args:
        folder: to make it in; by default that of temporary files.
    """
    with tempfile.TemporaryDirectory(dir=folder) as made:
        scratch = Path(made) / "work"
        scratch.mkdir()
        for kind in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{kind}"] = str(scratch / kind)
        os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
        yield scratch


def import_all() -> None:
    """Import what the commands need; after nnU-Net's folders are set."""
    import nnunetv2.run.run_training  # noqa: F401

    import nnunet_transformers.classification.fit
    import nnunet_transformers.cli
    import nnunet_transformers.inference
    import nnunet_transformers.pretraining.fit
    import nnunet_transformers.pretraining.methods.qt_ssl
    import nnunet_transformers.sharing  # noqa: F401
    from nnunet_transformers.trainers.trainer import TransformerTrainer

    TransformerTrainer.default_iterations = 3


def make_template(scratch: Path) -> Path:
    """Set up the scratch folder, train a model in it, and copy it beside; return the copy."""
    set_up(scratch)
    import_all()
    log = scratch.parent / "log"
    _, status = in_child(scratch, lambda: run_command(COMMANDS["train"].words), log)
    if status != 0:
        raise RuntimeError(log.read_text()[-3000:])
    return Path(shutil.copytree(scratch, scratch.parent / "template"))


def restore(template: Path, scratch: Path, name: str) -> None:
    """Make the scratch folder what it is before a command."""
    for path in scratch.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(template, scratch, dirs_exist_ok=True)
    if name == "train":
        shutil.rmtree(scratch / "results" / DATASET)


def damaged(scratch: Path) -> list[str]:
    """Return the files with a final name that cannot be read to their end."""
    files = [path for path in scratch.rglob("*") if path.is_file() and not is_partial(path, scratch)]
    return [f"{path.relative_to(scratch)}: {why}" for path in files if (why := broken(path))]


def to_go_on(name: str, command: Command, scratch: Path) -> list[str]:
    """Return the words that run a command again after it has failed."""
    is_there = {
        "attach": scratch / "preprocessed" / DATASET / "attached.json",
        "pretrain": scratch / "run" / "last.ckpt",
        "classify": scratch / "run" / "last.ckpt",
    }
    return [*command.words, *(command.again if name not in is_there or is_there[name].is_file() else ())]
