"""Run a first afternoon, from an empty environment to a package, and record it as afternoon.md.

    python docs/afternoon.py path/to/Dataset004_Hippocampus FOLDER     # FOLDER: new, keeps what the commands write

Every command is run as it stands on the page, in a new environment, without a GPU and without a terminal. Its output is
kept but for the middle of long ones. Ends with exit code 1 if a command fails, prints a traceback or another library's
warning, or is silent for longer than two minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_suffix(".md")
FOLD = "$nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerQTUNetDemo__{}__3d_fullres/fold_0"
PLAIN, PRETRAINED = FOLD.format("nnUNetQTUNetTPlans"), FOLD.format("nnUNetQTUNetTPlans_ssl")
SHOWN_FIRST, SHOWN_LAST = 6, 10
LONGEST_SILENCE = 120
# a step of a progress bar, and what nnU-Net says of each validation case
PROGRESS = re.compile(r"\d+%[|\u2501 ]|: predicting |, shape torch\.Size")
NOISE = re.compile(r"Traceback \(most recent|\w*Warning\b")

# (what it is for, commands)
STEPS = (
    (
        "Install, from a checkout, into a new environment",
        [
            "python -m venv .venv",
            ". .venv/bin/activate && pip install -qq CHECKOUT'[pretraining]'",
        ],
    ),
    ("Check the environment", ["nnunet-transformers doctor"]),
    (
        "Plan and preprocess; as for a GPU of 1.5 GB, so that the batch is small and a step short on a CPU",
        ["nnUNetv2_plan_and_preprocess -d 4 -pl nnUNetPlannerQTUNetT -c 3d_fullres -gpu_memory_target 1.5"],
    ),
    (
        "Train. The demo's trainer has a few short epochs; `nnUNetTrainerQTUNet` is the real one",
        ["nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerQTUNetDemo -p nnUNetQTUNetTPlans -device cpu"],
    ),
    (
        "Predict",
        [
            "nnunet-transformers predict -d 4 -c 3d_fullres -f 0 -tr nnUNetTrainerQTUNetDemo -p nnUNetQTUNetTPlans "
            "-i new_images -o predictions"
        ],
    ),
    ("Look at it: an HTML page", [f"nnunet-transformers report {PLAIN}"]),
    (
        "Pretrain an encoder on the images, without labels and without the validation cases of the fold",
        [
            "nnunet-transformers pretrain prepare $nnUNet_raw/Dataset004_Hippocampus prepared -d 4 "
            "-p nnUNetQTUNetTPlans --fold 0",
            "nnunet-transformers pretrain fit --config qt_ssl_in_task -d 4 -p nnUNetQTUNetTPlans --folder prepared "
            "--epochs 1",
        ],
    ),
    (
        "Start a training from it",
        [
            "nnunet-transformers attach $nnUNet_results/pretraining/Dataset004_Hippocampus/"
            "nnUNetQTUNetTPlans__3d_fullres/qt_ssl_in_task/encoder.pth -d 4 -p nnUNetQTUNetTPlans "
            "-o nnUNetQTUNetTPlans_ssl",
            "nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerQTUNetDemo -p nnUNetQTUNetTPlans_ssl -device cpu",
        ],
    ),
    (
        "Compare both on the validation cases",
        [f"nnunet-transformers compare scratch={PLAIN} pretrained={PRETRAINED} -o comparison"],
    ),
    (
        "Package the model, and run the package",
        [
            f"nnunet-transformers package make {PLAIN.removesuffix('/fold_0')} -f 0 -o hippocampus",
            "nnunet-transformers package predict hippocampus new_images predictions_of_the_package",
        ],
    ),
)
HEAD = """# A first afternoon

From an empty environment to a package for others, recorded{when} by

    python docs/afternoon.py path/to/Dataset004_Hippocampus FOLDER

The dataset is hippocampus of the [Decathlon](http://medicaldecathlon.com), in nnU-Net's format, with `nnUNet_raw`,
`nnUNet_preprocessed` and `nnUNet_results` set; `new_images` has five images of it. The networks are trained for
minutes, so that their Dice says nothing. [Start here](start.md) explains the steps. Of long outputs the middle is left
out, of progress bars all but the end.

"""


@dataclass
class Ran:
    """A command that was run: exit code, seconds, lines of output, and the longest time between two of them."""

    command: str
    code: int
    seconds: float
    lines: list[str]
    silence: float


def run(command: str, folder: Path, environment: dict[str, str]) -> Ran:
    """Run a command in a shell, and time its lines."""
    start = last = time.perf_counter()
    lines, silence = [], 0.0
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:  # with a carriage return a line ends, too
        now = time.perf_counter()
        silence, last = max(silence, now - last), now
        lines.append(line.rstrip())
        print(line, end="", flush=True)
    code = process.wait()
    end = time.perf_counter()
    return Ran(command, code, end - start, lines, max(silence, end - last))


def shortened(lines: list[str]) -> list[str]:
    """The first and the last lines of an output, and how many there are between; of a progress bar its last state."""
    lines = [line for line in lines if line.strip()]
    lines = [a for a, b in pairwise([*lines, ""]) if not (PROGRESS.search(a) and PROGRESS.search(b))]
    hidden = len(lines) - SHOWN_FIRST - SHOWN_LAST
    if hidden > 1:
        lines = [*lines[:SHOWN_FIRST], f"[{hidden} lines]", *lines[-SHOWN_LAST:]]
    return [line[:160] for line in lines]


def as_page(ran: list[list[Ran]], names: dict[str, str], machine: str) -> str:
    """The page of what was run; ``names`` are what the page says in place of paths."""
    total = sum(r.seconds for step in ran for r in step)
    silence = max(r.silence for step in ran for r in step)
    when = f" on {time.strftime('%Y-%m-%d')}, in {total / 60:.0f} minutes on {machine}"
    parts = [HEAD.format(when=when)]
    for (title, _), step in zip(STEPS, ran, strict=True):
        parts.append(f"## {title}\n\n")
        for r in step:
            parts.append(f"    $ {r.command}\n")
            parts += [f"    {line}".rstrip() + "\n" for line in shortened(r.lines)]
            parts.append(f"\n{r.seconds:.0f} s, at most {r.silence:.0f} s without a line.\n\n")
    parts.append(f"No command was silent for longer than {silence:.0f} s.\n")
    text = "".join(parts)
    for path, name in names.items():
        text = text.replace(path, name)
    return text


def problems(ran: list[Ran]) -> list[str]:
    """What must not be: a failed command, a traceback or a warning of another library, a long silence."""
    found = [f"{r.command}: exit code {r.code}" for r in ran if r.code]
    found += [f"{r.command}: {line}" for r in ran for line in r.lines if NOISE.search(line)]
    return found + [f"{r.command}: silent for {r.silence:.0f} s" for r in ran if r.silence > LONGEST_SILENCE]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="Dataset004_Hippocampus in nnU-Net's raw format")
    parser.add_argument("folder", type=Path, help="new folder to work in")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--installed", action="store_true", help="leave out the installation; for trying this script")
    options = parser.parse_args()
    work = options.folder.resolve()
    work.mkdir(parents=True)
    raw = work / "raw" / "Dataset004_Hippocampus"
    shutil.copytree(options.dataset, raw)
    (work / "new_images").mkdir()
    for image in sorted((raw / "imagesTr").iterdir())[:5]:
        shutil.copy(image, work / "new_images")
    folders = {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    path = Path(sys.executable).parent if options.installed else work / ".venv" / "bin"
    environment = {**os.environ, **folders, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    if not options.installed:
        environment = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["nnUNet_def_n_proc"] = str(os.cpu_count())  # nnU-Net's default, 8, is for larger machines
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    ran: list[list[Ran]] = []
    for title, commands in STEPS[int(options.installed) :]:
        print(f"\n== {title}", flush=True)
        ran.append([run(c.replace("CHECKOUT", str(ROOT)), work, environment) for c in commands])
        if failed := next((r for r in ran[-1] if r.code), None):
            print(f"error: {failed.command}: exit code {failed.code}", file=sys.stderr)
            return 1
    flat = [r for step in ran for r in step]
    if found := problems(flat):
        print("error: " + "\n".join(found), file=sys.stderr)
        return 1
    if not options.installed:
        names = {str(work): "~/afternoon", str(ROOT): "~/nnunet-transformers"}
        options.page.write_text(as_page(ran, names, f"{os.cpu_count()} CPU cores"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
