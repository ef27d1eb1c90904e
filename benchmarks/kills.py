"""Kill every command that writes at random file events, look at what is left, and run it again.

    python benchmarks/kills.py --kills 100                                  # results/kills.json
    TMPDIR=/dev/shm python benchmarks/kills.py --kills 100 --folder /tmp    # temporary files on another file system

Each run is forked from a process that has imported everything. It kills itself just before, or some milliseconds after,
its n-th write below its folder (files opened to write, renamed, removed, folders made), n drawn over those of a whole
run. Then:

- broken: files with a final name that cannot be read to their end;
- orphans: processes of its session that live ten seconds later;
- failed: the same command, with the option that its documentation names for going on, does not succeed;
- litter: partial files and leases that are left after that;
- repeated: optimiser steps that the last written state had and the resumed run does again;
- differs: results that an uninterrupted run does not have.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from survival import (
    COMMANDS,
    Command,
    content,
    count_writes,
    damaged,
    differing,
    in_child,
    is_partial,
    logged_steps,
    logs,
    make_template,
    orphans,
    restore,
    run_command,
    state_step,
    to_go_on,
    workplace,
)

COUNTED = ("broken", "orphans", "failed", "litter", "repeated", "differs")


def test_command(
    name: str, command: Command, kills: int, template: Path, scratch: Path, rng: random.Random
) -> dict[str, Any]:
    """Kill a command some times and list what went wrong."""
    counter, log = scratch.parent / "counter", scratch.parent / "log"

    def run(words: Sequence[str], at: int | None = None, delay: float = 0) -> Callable[[], None]:
        def start() -> None:
            count_writes(scratch, at, delay, counter)
            run_command(words)

        return start

    restore(template, scratch, name)
    leader, status = in_child(scratch, run(command.words), log)
    if status != 0:
        raise RuntimeError(f"{name} fails without a kill (status {status}):\n{log.read_text()[-3000:]}")
    writes = int(counter.read_text())
    whole = {str(p.relative_to(scratch)): content(p) for p in scratch.glob(command.results)} if command.results else {}
    result: dict[str, Any] = {"writes": writes, "kills": 0, "orphans_of_a_whole_run": orphans(leader)}
    result |= {kind: [] for kind in COUNTED}
    while result["kills"] < kills:
        at, delay = rng.randint(1, writes), rng.choice((0, rng.uniform(0.001, 0.05)))
        where = f"write {at}" + (f" + {1000 * delay:.0f} ms" if delay else "")
        restore(template, scratch, name)
        leader, status = in_child(scratch, run(command.words, at, delay), log)
        if status != -signal.SIGKILL:
            continue  # the rest of the run took less than the delay
        result["kills"] += 1
        result["orphans"] += [f"{where}: {line}" for line in orphans(leader)]
        result["broken"] += [f"{where}: {line}" for line in damaged(scratch)]
        if command.makes and (scratch / command.makes).exists():
            result["differs"] += [f"{where}: {file}" for file in differing(scratch, whole, command.results)]
            continue
        step, before = state_step(scratch), logs(scratch)
        _, status = in_child(scratch, run(to_go_on(name, command, scratch)), log)
        if status != 0:
            result["failed"].append(f"{where}: {log.read_text().strip().splitlines()[-1][:300]}")
            continue
        if step is not None and (repeated := [s for s in logged_steps(logs(scratch) - before) if s < step]):
            result["repeated"].append(f"{where}: {repeated}")
        result["litter"] += [f"{where}: {p.relative_to(scratch)}" for p in scratch.rglob("*") if is_partial(p, scratch)]
        result["differs"] += [f"{where}: {file}" for file in differing(scratch, whole, command.results)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="over all commands")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--folder", type=Path, help="for the files of the runs; by default that of temporary files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    arguments = parser.parse_args()
    # of the commands that are not killed this time, the results of before
    results: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    results.pop("total", None)
    with workplace(arguments.folder) as scratch:
        template = make_template(scratch)
        share = -(-arguments.kills // len(arguments.commands))
        for name in arguments.commands:
            start, rng = time.monotonic(), random.Random(f"{arguments.seed} {name}")
            results[name] = test_command(name, COMMANDS[name], share, template, scratch, rng)
            results[name]["minutes"] = round((time.monotonic() - start) / 60, 1)
            print(name, json.dumps(results[name], indent=1), flush=True)
            total = {kind: sum(len(result[kind]) for result in results.values()) for kind in COUNTED}
            total["kills"] = sum(result["kills"] for result in results.values())
            arguments.output.write_text(json.dumps({"total": total, **results}, indent=1) + "\n")
    print(total)


if __name__ == "__main__":
    main()
