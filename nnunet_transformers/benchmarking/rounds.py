"""Benchmark run: in every round each network is measured in turn, in a process of its own.

The networks alternate so that other load on the machine affects all of them, and the ratios of a round compare figures
that were measured shortly after each other.
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
    """Measure networks and summarise the results.

    Ctrl+C ends the run early; complete rounds then count, or the measured part of the first.

    Args:
        names: result of ``choose_networks``.
        settings: settings that all networks share.
        rounds: number of measurements of each network. A network that fails, for example for lack of memory, is not
            measured again.
        roofline: measure each network's floor and largest gaps as well, in the first round.
        report: called with a line for each measurement.

    Returns:
        the result of ``summarise``, with the environment, the rates of the device and the settings, and
        ``interrupted`` after Ctrl-C.

    Raises:
        RuntimeError: if the device cannot be measured.
    """
    machine, why = _in_child({"network": None, "roofline": roofline}, settings)
    if machine is None:
        raise RuntimeError(f"the device {settings.device} cannot be measured: {why}")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    complete = 0
    interrupted: dict[str, bool] = {}
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
        interrupted = {"interrupted": True}
        rounds = max(complete, 1)
        for name in names:
            del measured[name][rounds:]
            if not measured[name]:
                failed.setdefault(name, "not measured, the run was interrupted")
    return {**machine, **summarise(measured, failed, rounds), **interrupted, "settings": asdict(settings)}


def _in_child(job: dict[str, Any], settings: Settings) -> tuple[dict[str, Any] | None, str]:
    """Run a job in a new process; returns its result and "", or None and the reason of its failure."""
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
    """Return the reason of a process's end: its signal, or the message of its exception."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", as the system does when memory is short" if name == "SIGKILL" else "")
    lines = [line for line in errors.splitlines() if line.strip()]
    # a message may have several lines; Python writes the exception's name before the first
    named = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Interrupt)\b", line)]
    return re.sub(r"^[\w.]*(?:Error|Exception): ", "", (named or lines or [f"ended with {code}"])[-1])
