"""Tables and curves from the results of the runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_transformers._atomic import write_text

from .prepare import group_of
from .runs import Run, read_lines
from .tables import BUDGETS, DATA, JUDGED_FOLD, PRETRAININGS, REFERENCE, ROWS, UNIT_ITERATIONS

Records = list[dict[str, Any]]
RESAMPLES, INTERVAL = 10_000, (2.5, 97.5)
# Okabe and Ito's, which the colour-blind tell apart
COLOURS = ("#000000", "#E69F00", "#CC79A7", "#0072B2", "#009E73", "#D55E00", "#56B4E9")
MARKERS = "osD^vP*X"
HEADER = """# Dice at equal cost

`python -m benchmarks.accuracy report` writes this page from [the runs](accuracy.jsonl);
[the benchmark](../accuracy/__init__.py) says how they are made. Dice is that of whole validation cases, the mean over
labels and seeds; the spread is from the worst to the best seed. Differences are to {stock} on the same cases, or, of a
pretrained network, to the same network from scratch, with a 95 % bootstrap interval over patients, which does not
include the spread of the seeds. Costs are processor time of one
thread, measured for each network and dataset; a budget of 1 is what {stock} takes for {iterations:,} iterations on
hippocampus, and gives each training its iterations, also where a GPU made them. All is far from converged: the tables
say what a network has learnt by then, not where it ends. Trained on: {devices}.
"""


def report(sources: Iterable[Path], output: Path) -> None:
    """Write OUTPUT.jsonl, .md and .png.

    Args:
        sources: files of results; of a run that several have, the last counts.
        output: path without ending.
    """
    records = list({Run.of(record): record for source in sources for record in read_lines(source)}.values())
    order = [list(table) for table in (DATA, BUDGETS, ROWS)]
    records.sort(
        key=lambda r: (
            *(names.index(r[key]) for key, names in zip(("dataset", "budget", "row"), order, strict=True)),
            r["fold"],
            r["seed"],
        )
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text("".join(json.dumps(record) + "\n" for record in records), output.with_suffix(".jsonl"))
    write_text(page(records, output.with_suffix(".png").name), output.with_suffix(".md"))
    if judged := [r for r in records if r["fold"] == JUDGED_FOLD]:
        draw(judged).savefig(output.with_suffix(".png"), dpi=110)


def page(records: Records, picture: str) -> str:
    """Markdown: a table for each dataset and budget, of the fold that judges and of those for tuning."""
    devices = ", ".join(sorted({str(r.get("gpu", r["processor"])) for r in records}))
    lines = [HEADER.format(stock=ROWS[REFERENCE[0]].title, iterations=UNIT_ITERATIONS, devices=devices)]
    for title, is_judged in ((f"Fold {JUDGED_FOLD}", True), ("Folds for tuning", False)):
        chosen = [r for r in records if (r["fold"] == JUDGED_FOLD) is is_judged]
        if not chosen:
            continue
        lines.append(f"## {title}\n")
        if is_judged:
            lines.append(f"![Dice of validation patches against processor time]({picture})\n")
        for dataset in DATA:
            for budget in BUDGETS:
                if part := [r for r in chosen if (r["dataset"], r["budget"]) == (dataset, budget)]:
                    lines += [f"### {heading(dataset, budget)}\n", table(part), ""]
    return "\n".join(lines)


def heading(dataset: str, budget: str) -> str:
    """A dataset and budget in words."""
    data, given = DATA[dataset], BUDGETS[budget]
    name = f"{data.dataset.partition('_')[2]}, `{data.configuration}`"
    if data.labelled:
        name += f", {data.labelled} labelled cases"
    return f"{name}, {given.iterations} iterations" if given.iterations else f"{name}, budget {given.units:g}"


def table(records: Records) -> str:
    """Markdown table of one dataset and budget, by row."""
    labels = list(records[0]["dice_per_label"])
    by_row = {row: [r for r in records if r["row"] == row] for row in ROWS}
    head = ["", "seeds", "Dice", "spread", "difference", *labels]
    head += ["iterations", "batch", "patch", "parameters", "s per iteration", "minutes"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, runs in by_row.items():
        if not runs:
            continue
        dice = [mean(r["dice"] for r in runs if r["seed"] == seed) for seed in sorted({r["seed"] for r in runs})]
        first = runs[0]
        reference = PRETRAININGS[name].row if (name := ROWS[row].pretraining) else REFERENCE[0]
        cells = [
            ROWS[row].title,
            str(len(dice)),
            f"{mean(dice):.3f}",
            f"{min(dice):.3f} to {max(dice):.3f}" if len(dice) > 1 else "",
            in_words(difference(runs, by_row[reference])) if row != reference else "",
            *(f"{mean(r['dice_per_label'][label] for r in runs):.3f}" for label in labels),
            str(first["iterations"]),
            str(first["batch_size"]),
            "x".join(map(str, first["patch_size"])),
            f"{first['parameters'] / 1e6:.1f} M",
            f"{first['calibrated_seconds']:.2f}",
            f"{cost(first) / 60:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost(record: dict[str, Any]) -> float:
    """Seconds of processor time of a training, of the measured cost of its iterations."""
    return record["calibrated_seconds"] * record["iterations"]


def in_words(values: tuple[float, float, float] | None) -> str:
    """A difference with its interval."""
    return "" if values is None else f"{values[0]:+.3f} ({values[1]:+.3f} to {values[2]:+.3f})"


def patient_dice(records: Records) -> dict[str, float]:
    """Mean over labels, cases and runs, by patient; labels that a case lacks do not count."""
    found: dict[str, list[float]] = {}
    for record in records:
        for case, values in record["dice_per_case"].items():
            present = [value for value in values if value is not None]
            if present:
                found.setdefault(group_of(case, DATA[record["dataset"]].group), []).append(mean(present))
    return {patient: mean(values) for patient, values in found.items()}


def difference(records: Records, reference: Records) -> tuple[float, float, float] | None:
    """Mean difference over the patients that both have, and its 95 % bootstrap interval; None if there are none."""
    ours, theirs = patient_dice(records), patient_dice(reference)
    differences = np.array([ours[patient] - theirs[patient] for patient in sorted(ours.keys() & theirs.keys())])
    if not differences.size:
        return None
    resampled = np.random.default_rng(0).choice(differences, (RESAMPLES, differences.size)).mean(axis=1)
    low, high = np.percentile(resampled, INTERVAL)
    return float(differences.mean()), float(low), float(high)


def draw(records: Records) -> Figure:
    """Draw Dice of validation patches against processor time, a panel for each dataset and budget.

    The mark at the end, and the number in the legend, is the Dice of whole cases. All are means over seeds.
    """
    panels = [
        (dataset, budget, part)
        for budget in BUDGETS
        for dataset in DATA
        if (part := [r for r in records if (r["dataset"], r["budget"]) == (dataset, budget)])
    ]
    columns = min(len(panels), len(DATA))
    figure = Figure(figsize=(4 * columns, 3.6 * -(-len(panels) // columns)))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for (dataset, budget, part), axes in zip(panels, grid, strict=False):
        for index, (row, described) in enumerate(ROWS.items()):
            if runs := [r for r in part if r["row"] == row]:
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                curve = _mean([r["curve"]["pseudo_dice"] for r in runs])
                minutes = cost(runs[0]) / 60 * np.arange(1, len(curve) + 1) / runs[0]["epochs"]
                final = mean(r["dice"] for r in runs)
                axes.plot(minutes, curve, color=colour, linewidth=1.2)
                label = f"{described.title}, {final:.3f}"
                axes.plot(minutes[-1:], [final], marker, color=colour, markersize=6, alpha=0.8, label=label)
        title = heading(dataset, budget).replace("`", "")
        axes.set(title=title, xlabel="processor time, minutes", ylabel="Dice")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="best")
    for axes in list(grid):
        axes.set_axis_off()
    figure.tight_layout()
    return figure


def _mean(curves: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Mean of curves over their common length."""
    length = min(map(len, curves))
    # None, of a loss that is not finite, becomes NaN
    return np.mean(np.array([curve[:length] for curve in curves], dtype=float), axis=0)
