"""Page of a run of pretraining or classification: its curves, from the metrics.csv that it writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from ..._atomic import write_text
from .document import document, escape
from .facts import written_with
from .figures import draw_series

METRICS = "metrics.csv"
# columns that say where a row belongs
PLACE = ("epoch", "step")
VALIDATION = "val_"

Series = dict[str, tuple[list[float], list[float]]]


def is_run(folder: Path) -> bool:
    """Whether a folder is of a run that wrote metrics."""
    return bool(metrics_files(folder))


def metrics_files(folder: Path) -> list[Path]:
    """Return the files of a run in the order of its versions, as a copy has other times; a resumed run has several."""
    versions = sorted(folder.glob(f"lightning_logs/version_*/{METRICS}"), key=_version)
    return [*folder.glob(METRICS), *versions]


def _version(path: Path) -> int:
    number = path.parent.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else -1


def read_metrics(folder: Path) -> Series:
    """Read the metrics of a run by name: steps and values, the later file's from the step on at which it begins.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if a file is damaged.
    """
    files = metrics_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no {METRICS}; is it the folder of a run (--trainer.default_root_dir)?")
    values: dict[str, dict[float, float]] = {}
    for path in files:
        try:
            rows = [*csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
            read = [(float(row["step"]), k, float(v)) for row in rows for k, v in row.items() if v and k not in PLACE]
        except (KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of metrics by step: {error!r}") from error
        first = min((step for step, *_ in read), default=math.inf)
        values = {name: {s: v for s, v in of_step.items() if s < first} for name, of_step in values.items()}
        for step, name, value in read:
            values.setdefault(name, {})[step] = value
    return {n: ([s + 1 for s in sorted(v)], [v[s] for s in sorted(v)]) for n, v in sorted(values.items()) if v}


def write_run_report(folder: Path, output: Path | None = None) -> Path:
    """Write the curves of a run, each metric of training beside that of validation, as one HTML file.

    Args:
        folder: folder of the run.
        output: HTML file; ``report.html`` in the folder by default.

    Raises:
        FileNotFoundError: as ``read_metrics``.
        ValueError: as ``read_metrics``, or if the run has no metrics yet.
    """
    series = read_metrics(folder)
    if not series:
        raise ValueError(f"{metrics_files(folder)[-1]} holds no metrics yet; report after the run's first epoch")
    groups: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, points in series.items():
        kind = "validation" if name.startswith(VALIDATION) else "training"
        groups.setdefault(name.removeprefix(VALIDATION), {})[kind] = points
    first = [*(name for name in groups if name == "loss"), *(name for name in groups if name != "loss")]
    figures = ""
    for name in first:
        picture = draw_series(groups[name], name)
        figures += (
            f"<figure><img class='plot' src='{picture}' alt='{escape(f'{name}, {_ends(groups[name])}')}'></figure>"
        )
    steps = int(max(s[-1] for s, _ in series.values()))
    body = (
        f"<h1>{escape(folder.resolve().name)}</h1><p class='note'>{steps} steps</p><div class='plots'>{figures}</div>"
    )
    body += f"<p class='note'>{escape(written_with())}</p>"
    output = output or folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(document(folder.resolve().name, body), output)
    return output


def _ends(group: Mapping[str, tuple[list[float], list[float]]]) -> str:
    return ", ".join(f"{name} from {v[0]:.3g} to {v[-1]:.3g}" for name, (_, v) in group.items())
