"""Two processes write the same encoder checkpoint, and two runs start in the same folder, while others read.

    python benchmarks/two_writers.py --seconds 60      # results/two_writers.json

Of the checkpoint, each read must be whole and of one writer. Of the runs, one is refused, and each read of the other's
state and encoder must be whole.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from survival import COMMANDS, set_up, workplace

from nnunet_transformers.weights import EncoderCheckpoint, load_encoder
from nnunet_transformers.weights.file import read_state


def write(path: Path, number: int, seconds: float) -> None:
    """Write checkpoints whose weights are all ``number``."""
    weights = {f"layer{i}.weight": torch.full((64, 64), float(number)) for i in range(40)}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        EncoderCheckpoint(weights, "qt_unet_tiny", (16, 16, 16), 1, method=str(number)).save(path)


def files(folder: Path, seconds: float) -> dict[str, int]:
    """Count the reads of a file with two writers."""
    path, reads = folder / "encoder.pth", Counter({"reads": 0, "unreadable": 0, "mixed": 0})
    writers = [multiprocessing.Process(target=write, args=(path, number, seconds)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if not path.is_file():
            continue
        reads["reads"] += 1
        try:
            values = {float(v) for tensor in load_encoder(path).weights.values() for v in tensor.unique()}
            reads["mixed"] += len(values) > 1
            reads[f"of_writer_{values.pop():.0f}"] += 1
        except ValueError:
            reads["unreadable"] += 1
    return {**reads, "left_beside": len(list(folder.iterdir())) - 1, "failed": sum(w.exitcode != 0 for w in writers)}


def runs(scratch: Path, seconds: float) -> dict[str, Any]:
    """Start two runs in one folder at the same time, and count the reads of their state."""
    command = [str(Path(sys.executable).parent / "nnunet-transformers"), *COMMANDS["pretrain"].words]
    command += ["--trainer.max_epochs=100000", "--trainer.max_time=00:00:00:" + f"{int(seconds):02d}"]
    both = [subprocess.Popen(command, cwd=scratch, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    reads: Counter[str] = Counter(reads=0, unreadable=0)
    while any(run.poll() is None for run in both):
        for name, read in (("last.ckpt", read_state), ("encoder.pth", load_encoder)):
            if (scratch / "run" / name).is_file():
                reads["reads"] += 1
                try:
                    read(scratch / "run" / name)
                except ValueError:
                    reads["unreadable"] += 1
    refused = [error for run in both if "is being written by" in (error := run.communicate()[1])]
    return {**reads, "refused": len(refused), "message": refused[0].strip().splitlines()[-1] if refused else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "two_writers.json")
    arguments = parser.parse_args()
    with workplace() as scratch:
        results: dict[str, Any] = {"seconds": arguments.seconds, "files": files(scratch, arguments.seconds)}
        set_up(scratch)
        results["runs"] = runs(scratch, min(59.0, arguments.seconds))
    results["runs"]["message"] = results["runs"]["message"].replace(str(scratch), "FOLDER")
    print(json.dumps(results, indent=1))
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
