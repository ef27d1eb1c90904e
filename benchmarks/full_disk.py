"""Run every command that writes on a disk that fills up, look at what is left, enlarge the disk and run it again.

    sudo python benchmarks/full_disk.py --runs 40     # results/full_disk.json

The disk is a tmpfs, which takes root to mount, with random room for less than what the command writes. Listed are
broken files, tracebacks, commands that fail on the larger disk, and litter, as in kills.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from survival import (
    COMMANDS,
    damaged,
    in_child,
    is_partial,
    make_template,
    restore,
    run_command,
    to_go_on,
    workplace,
)

COUNTED = ("broken", "tracebacks", "failed", "litter")


def used(disk: Path) -> int:
    """Return the bytes in use on a disk."""
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def test_command(name: str, runs: int, template: Path, scratch: Path, disk: Path, rng: random.Random) -> dict[str, Any]:
    """Run a command on disks of some sizes and list what went wrong."""
    command, log, large = COMMANDS[name], Path(tempfile.gettempdir()) / f"full_disk_{os.getpid()}.log", 2**31
    restore(template, scratch, name)
    before = used(disk)
    in_child(scratch, lambda: run_command(command.words), log)
    needed = used(disk) - before
    result: dict[str, Any] = {"bytes": needed, "runs": 0, **{kind: [] for kind in COUNTED}}
    for _ in range(runs):
        room = rng.randint(0, needed)
        restore(template, scratch, name)
        resize(disk, used(disk) + room)
        _, status = in_child(scratch, lambda: run_command(command.words), log)
        resize(disk, large)
        where, text = f"room {room}", log.read_text(errors="replace")
        if status == 0:
            continue  # there was room enough
        result["runs"] += 1
        result["broken"] += [f"{where}: {line}" for line in damaged(scratch)]
        if "Traceback" in text and name != "train":  # nnU-Net's command shows what our trainer raises
            result["tracebacks"].append(f"{where}: {text.strip().splitlines()[-1][:300]}")
        if command.makes and (scratch / command.makes).exists():
            continue
        _, status = in_child(scratch, lambda: run_command(to_go_on(name, command, scratch)), log)
        if status != 0:
            result["failed"].append(f"{where}: {log.read_text().strip().splitlines()[-1][:300]}")
        result["litter"] += [f"{where}: {p.relative_to(scratch)}" for p in scratch.rglob("*") if is_partial(p, scratch)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40, help="over all commands")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "full_disk.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", mounted], check=True)
        try:
            with workplace(Path(mounted)) as scratch:
                template = make_template(scratch)
                for name in arguments.commands:
                    share = -(-arguments.runs // len(arguments.commands))
                    rng = random.Random(name)
                    results[name] = test_command(name, share, template, scratch, Path(mounted), rng)
                    print(name, json.dumps(results[name], indent=1), flush=True)
                    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            subprocess.run(["umount", "-l", mounted], check=True)


if __name__ == "__main__":
    main()
