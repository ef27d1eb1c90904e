"""Facts of a fold for its page: network, plan, dates, cost and versions, from the files of its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import __version__
from ..._meta import without_data
from ..._reading import read_json
from ..._text import in_words, times
from ...plans.planned import PlannedConfiguration
from .document import escape
from .training_log import Curves, read_curves

PLANS, DATASET, STARTED = "plans.json", "dataset.json", "debug.json"


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        done: finished epochs.
        planned: epochs of its schedule; None where nnU-Net did not state it.
        seconds: median of an epoch; NaN before the first has ended.
        is_trained: whether its last checkpoint is there.
    """

    done: int
    planned: int | None
    seconds: float
    is_trained: bool

    @property
    def epochs(self) -> str:
        """Epochs in words, such as ``19 of 41 epochs``."""
        planned = "" if self.planned is None or self.planned == self.done else f" of {self.planned}"
        return f"{self.done}{planned} epoch{'s' * (self.done != 1 or bool(planned))}"

    @property
    def left(self) -> str:
        """Time left in words; empty where it is not known."""
        if self.is_trained or self.planned is None or not np.isfinite(self.seconds):
            return ""
        return in_words(max(0, self.planned - self.done) * self.seconds)


def progress_of(fold: Path, curves: Curves) -> Progress:
    """Return how far the training of a fold is."""
    planned = str(_started(fold).get("num_epochs", ""))
    seconds = float(np.median(curves.epoch_seconds)) if curves.epoch_seconds else float("nan")
    is_trained = (fold / "checkpoint_final.pth").is_file()
    return Progress(len(curves.train_loss), int(planned) if planned.isdecimal() else None, seconds, is_trained)


def fold_of(folder: Path) -> Path | None:
    """Return the fold that a folder is, or whose validation it is; None if it is neither."""
    return next(
        (f for f in (folder, folder.parent) if f.name.startswith("fold_") and (f.parent / PLANS).is_file()), None
    )


def facts_of(fold: Path, trust: bool = False) -> dict[str, str]:
    """Return what is known of a fold, by short names, as plain text.

    Args:
        fold: nnU-Net's folder of a fold.
        trust: build whatever network the plan names, to count its parameters.

    Raises:
        ValueError: if a file is no JSON.
    """
    parts = fold.resolve().parent.name.split("__")
    trainer, plan, configuration = parts if len(parts) == 3 else (parts[0], "", None)
    plans, dataset = (read_json(fold.parent / name) for name in (PLANS, DATASET))
    curves, started = read_curves(fold), _started(fold)
    progress = progress_of(fold, curves)
    facts = {"trainer": f"{trainer}, {fold.resolve().name}", "plan": plan}
    if configuration is not None:  # which a folder of another name does not say
        # the curves are there all the same if the plan describes nothing that is known here
        with suppress(KeyError, TypeError, ValueError):
            planned = PlannedConfiguration(plans, dataset, configuration)
            facts["plan"] += f", {configuration}: {_patch(planned.configuration.configuration)}"
            facts["network"] = _network(planned, trainer, trust)
    if curves.first:
        dates = f"{curves.first} to {curves.last}" if curves.last else f"begun {curves.first}"
        facts["trained"] = f"{progress.epochs}, {dates}"
    cost = []
    if progress.done:
        cost.append(f"{in_words(progress.seconds)} per epoch, {in_words(sum(curves.epoch_seconds))} in all")
    if curves.memory:
        cost.append(f"at most {curves.memory} of GPU memory")
    if "device" in started:
        cost.append(f"on {started.get('gpu_name', started['device'])}")
    if cost:
        facts["cost"] = ", ".join(cost)
    libraries = curves.versions or (f"PyTorch {started['torch_version']}" if "torch_version" in started else "")
    if libraries:
        facts["trained with"] = libraries
    return facts


def written_with() -> str:
    """Return date and versions for the foot of a page."""
    return (
        f"Written {time.strftime('%Y-%m-%d %H:%M')} with nnunet-transformers {__version__}, nnU-Net "
        f"{version('nnunetv2')}, PyTorch {torch.__version__}"
    )


def table_of_facts(facts: Mapping[str, Mapping[str, str]], headed: bool = False) -> str:
    """Return the facts of folds as an HTML table with a row for each fact, and the folds' names as its head if asked.

    Args:
        facts: facts by the fold's name.
        headed: whether the table has a head.
    """
    names = list(dict.fromkeys(name for of_fold in facts.values() for name in of_fold))
    head = "".join(f"<th class='text'>{escape(name)}</th>" for name in ("", *facts)) if headed else ""
    rows = (
        f"<tr><th class='text'>{escape(name)}</th>"
        + "".join(f"<td class='text'>{escape(of_fold.get(name, '-'))}</td>" for of_fold in facts.values())
        + "</tr>"
        for name in names
    )
    return f"<table class='facts'>{f'<tr>{head}</tr>' * bool(head)}{''.join(rows)}</table>"


def _started(fold: Path) -> dict[str, Any]:
    """Return what nnU-Net wrote when training began; empty if it is not there or damaged."""
    with suppress(OSError, ValueError):
        return read_json(fold / STARTED)
    return {}


def _patch(configuration: Mapping[str, Any]) -> str:
    spacing = times(f"{float(s):.3g}" for s in configuration["spacing"])
    return f"patch {times(configuration['patch_size'])} at {spacing} mm, batch {configuration['batch_size']}"


def _network(planned: PlannedConfiguration, trainer: str, trust: bool) -> str:
    name = str(planned.configuration.network_arch_class_name).rpartition(".")[2]
    try:
        with without_data():
            network = planned.build_network(trainer, trust=trust)
    except (ValueError, RuntimeError, ImportError):  # a trainer, network or library that is not installed here
        return name
    return f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
