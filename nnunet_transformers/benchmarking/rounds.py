"""A run: every network in turn, each time in a process of its own, for some rounds.

The networks take turns so that what else the machine does falls on all of them, and the ratios of a round are of
figures that were measured one after another.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .measure import Settings
from .results import summarise

CHILD = [sys.executable, "-m", "nnunet_transformers.benchmarking.measure"]


def run_benchmark(
    names: Sequence[str],
    settings: Settings,
    rounds: int = 3,
    roofline: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure networks, and sum up.

    Ctrl+C ends it early: what counts then is whole rounds, or what the first has come to.

    Args:
        names: of ``choose_networks``.
        settings: shared by all networks.
        rounds: how often each network is measured. One that fails, for want of memory for instance, is not tried again.
        roofline: in the first round find each network's floor and its largest gaps as well.
        report: is told of each measurement.

    Returns:
        what ``summarise`` makes of it.

    Raises:
        RuntimeError: if the device cannot be measured.
    """
    machine, why = _in_child({"network": None, "roofline": roofline}, settings)
    if machine is None:
        raise RuntimeError(f"the device {settings.device} cannot be measured: {why}")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    complete = 0
    try:
        for number in range(1, rounds + 1):
            for name in names:
                if name in failed:
                    continue
                job = {"network": name, "rates": machine["rates"], "roofline": roofline and number == 1}
                figures, why = _in_child(job, settings)
                if figures is None:
                    failed[name] = why
                else:
                    measured[name].append(figures)
                    forward, step = (1000 * figures[key] for key in ("forward_s", "training_step_s"))
                    why = f"forward {forward:.0f} ms, training step {step:.0f} ms"
                report(f"round {number} of {rounds}, {name}: {why}")
            complete = number
    except KeyboardInterrupt:
        if not any(measured.values()):
            raise
        rounds = max(complete, 1)
        for name in names:
            del measured[name][rounds:]
            if not measured[name]:
                failed.setdefault(name, "not measured, the run was interrupted")
    return {**machine, **summarise(measured, failed, rounds), "settings": asdict(settings)}


def _in_child(job: dict[str, Any], settings: Settings) -> tuple[dict[str, Any] | None, str]:
    """What a measuring process wrote; or None, and why it did not."""
    environment = dict(os.environ)
    if settings.threads:
        environment["OMP_NUM_THREADS"] = str(settings.threads)
    described = json.dumps({**job, "settings": asdict(settings)})
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        process = subprocess.run(
            [*CHILD, described, str(result)],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if process.returncode == 0:
            return json.loads(result.read_text()), ""
    return None, _why(process.returncode, process.stderr)


def _why(code: int, errors: str) -> str:
    """Why a process ended: the signal that did it, or the message of its exception."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", as the system does when memory is short" if name == "SIGKILL" else "")
    lines = [line for line in errors.splitlines() if line.strip()]
    # a message may have several lines, but Python writes the exception's name before the first
    named = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt)\b", line)]
    return re.sub(r"^[\w.]*(?:Error|Exception): ", "", (named or lines or [f"ended with {code}"])[-1])
