"""Tables and curves from the results of the runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_transformers._atomic import write_text

from .costs import COSTS_NAME, measured_as, read_costs
from .prepare import group_of
from .runs import Run, read_lines
from .tables import BUDGETS, DATA, JUDGED_FOLD, PRETRAININGS, REFERENCE, ROWS, UNIT_ITERATIONS, Data

Records = list[dict[str, Any]]
Costs = Mapping[tuple[str, str], dict[str, Any]]
RESAMPLES, INTERVAL = 10_000, (2.5, 97.5)
# Okabe and Ito's, which the colour-blind tell apart
COLOURS = ("#000000", "#E69F00", "#CC79A7", "#0072B2", "#009E73", "#D55E00", "#56B4E9")
MARKERS, COLUMNS = "osD^vP*X", 3
HEADER = """`python -m benchmarks.accuracy report` writes this page from [the runs]({runs}); `benchmarks/accuracy` says
how they are made. Dice is that of whole validation cases, the mean over labels and seeds; the spread is from the worst
to the best seed. Differences are to {stock} on the same cases; the effect of a change, or of pretraining, is the
difference to the same network without it. Both have a 95 % bootstrap interval over patients, which does not include
the spread of the seeds and is too narrow for few patients (EM's are five slices of one stack); where a seed draws the
labelled cases, they are between the same seeds. Networks are trained by their trainers: nnU-Net's CNNs by SGD as
published, ours by AdamW, whose rate was chosen on short trainings of QT-UNet on fold 0 of this hippocampus, as were
its norm and windows, so that a difference is that of network and optimiser together. {costs}Trained on: {devices}."""
COSTS = """Costs are time of one CPU thread, [measured once]({measured}) for each network and dataset.{elsewhere}
A budget of 1 is what {stock} takes for {iterations:,} iterations on hippocampus. It gives each training its iterations,
also where a GPU made them, in float16, and in other times (`wall_seconds`); on a CPU it is float32. All is far from
converged: the tables say what a network has learnt by then, not where it ends. """
ELSEWHERE = " CPUs differ in what they are fast at; those that trained here took, as shares of these costs: {shares}."
LINE = 120


def report(sources: Iterable[Path], output: Path, pretrainings: Iterable[Path] = ()) -> None:
    """Write OUTPUT.jsonl, .md and .png, OUTPUT_costs.jsonl and OUTPUT_pretraining.jsonl.

    Args:
        sources: files of results, with ``costs.jsonl`` beside them; of a run that several have, the last counts.
        output: path without ending.
        pretrainings: files of the pretrainings' records; the last of a name counts.
    """
    sources = list(sources)
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
    kept = output.with_name(f"{output.name}_pretraining.jsonl")
    made = {record["pretraining"]: record for source in (kept, *pretrainings) for record in read_lines(source)}
    if made := {name: made[name] for name in PRETRAININGS if name in made}:
        write_text("".join(json.dumps(record) + "\n" for record in made.values()), kept)
    kept_costs = output.with_name(f"{output.name}_costs.jsonl")
    if costs := read_costs(kept_costs, *(source.with_name(COSTS_NAME) for source in sources)):
        write_text("".join(json.dumps(cost) + "\n" for cost in costs.values()), kept_costs)
    text = page(records, output.with_suffix(".png").name, costs)
    if made:
        text += f"\n## Pretraining\n\n[Settings and curves]({kept.name})\n\n{pretraining_table(made.values())}\n"
    write_text(text, output.with_suffix(".md"))
    if judged := [r for r in records if r["fold"] == JUDGED_FOLD]:
        draw(judged).savefig(output.with_suffix(".png"), dpi=110)


def page(records: Records, picture: str, measured: Costs) -> str:
    """Markdown: a table for each dataset and budget, of the fold that judges and of those for tuning.

    Args:
        records: the runs.
        picture: name of the curves' file, beside which are the others.
        measured: the measured costs.
    """
    devices = ", ".join(sorted({str(r.get("gpu", r["processor"])) for r in records}))
    stock, has_costs = ROWS[REFERENCE[0]].title, any(BUDGETS[r["budget"]].units for r in records)
    equal, runs = "cost" if has_costs else "iterations", Path(picture).with_suffix(".jsonl")
    costs = ""
    if has_costs:
        file, taken = runs.with_name(f"{runs.stem}_costs.jsonl"), elsewhere(records, measured)
        costs = COSTS.format(stock=stock, iterations=UNIT_ITERATIONS, measured=file, elsewhere=taken)
    header = HEADER.format(runs=runs, stock=stock, costs=costs, devices=devices)
    lines = [f"# Dice at equal {equal}\n", fill(header, LINE, break_long_words=False), ""]
    for title, is_judged in ((f"Fold {JUDGED_FOLD}", True), ("Folds for tuning", False)):
        chosen = [r for r in records if (r["fold"] == JUDGED_FOLD) is is_judged]
        if not chosen:
            continue
        lines.append(f"## {title}\n")
        if is_judged:
            lines.append(f"![Dice of validation patches against the {equal} of training]({picture})\n")
        for dataset in DATA:
            for budget in BUDGETS:
                if part := [r for r in chosen if (r["dataset"], r["budget"]) == (dataset, budget)]:
                    others = [r for r in chosen if r["dataset"] == dataset]
                    lines += [f"### {heading(dataset, budget)}\n", table(part, others), ""]
    return "\n".join(lines)


def elsewhere(records: Records, measured: Costs) -> str:
    """What the networks took of their measured costs on the processors that trained them, in a sentence.

    Args:
        records: the runs.
        measured: the costs; of those that were measured beside an earlier one, the earlier one's two values count.
    """
    taken: dict[str, list[float]] = {}
    for of in measured.values():
        if (beside := tuple(of.get("beside", ()))) in measured:
            taken.setdefault(beside[0], []).append(of["beside_seconds"] / measured[beside]["seconds"])
    for run in records:
        if "gpu" not in run and run["calibrated_seconds"]:
            row, _ = measured_as(run["row"], run["dataset"])
            taken.setdefault(row, []).append(run["processor_seconds"] / cost(run))
    shares = [f"{ROWS[row].title} {mean(taken[row]):.2f}" for row in ROWS if row in taken and ROWS[row].varies is None]
    if not shares:
        return ""
    return ELSEWHERE.format(shares=", ".join(shares))


def heading(dataset: str, budget: str) -> str:
    """A dataset and budget in words."""
    data, given = DATA[dataset], BUDGETS[budget]
    name = heading_of(data)
    if data.labelled:
        name += f", {data.labelled} labelled {'patients' if data.has_groups else 'cases'}"
    if data.largest_batch is None:
        name += ", planned batch"
    return f"{name}, {given.iterations:,} iterations" if given.iterations else f"{name}, budget {given.units:g}"


def heading_of(data: Data) -> str:
    """A configuration of a dataset in words."""
    return f"{data.dataset.partition('_')[2]}, `{data.configuration}`"


def as_long_from_scratch(records: Records, others: Records) -> Records:
    """The runs from scratch that are as long as the pretraining and the training of these runs of a row together."""
    made_by, units = ROWS[records[0]["row"]].pretraining, BUDGETS[records[0]["budget"]].units
    if made_by is None or units is None:
        return []
    given = PRETRAININGS[made_by]
    total = round(units + given.units, 6)
    return [r for r in others if r["row"] == given.row and BUDGETS[r["budget"]].units == total]


def table(records: Records, others: Records | None = None) -> str:
    """Markdown table of one dataset and budget, by row.

    Args:
        records: runs of the dataset and budget.
        others: runs of the dataset. Those from scratch that are as long as a pretraining and a training in the table
            together make a column of differences to them.
    """
    labels = list(records[0]["dice_per_label"])
    by_row = {row: [r for r in records if r["row"] == row] for row in ROWS}
    has_folds = any(r["fold"] != JUDGED_FOLD for r in records)
    has_stock = any(by_row[REFERENCE[0]]) and len({r["row"] for r in records}) > 1
    scratch = {row: as_long_from_scratch(runs, others or []) for row, runs in by_row.items() if runs}
    has_effects = any(by_row[base] for row, runs in by_row.items() if runs and (base := ROWS[row].base))
    head = [
        "",
        *["folds"] * has_folds,
        "seeds",
        "Dice",
        "spread",
        *["difference"] * has_stock,
        *["effect"] * has_effects,
        *["at equal total cost"] * any(scratch.values()),
        *labels,
    ]
    # a budget in iterations is not one of processor time
    has_costs = BUDGETS[records[0]["budget"]].units is not None
    head += ["iterations", "batch", "patch", "parameters", *["s per iteration", "minutes"] * has_costs]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row, runs in by_row.items():
        if not runs:
            continue
        dice = [mean(r["dice"] for r in runs if r["seed"] == seed) for seed in sorted({r["seed"] for r in runs})]
        first = runs[0]
        base = ROWS[row].base
        to_stock = difference(runs, by_row[REFERENCE[0]]) if row != REFERENCE[0] else None
        cells = [
            ROWS[row].title,
            *[", ".join(map(str, sorted({r["fold"] for r in runs})))] * has_folds,
            str(len(dice)),
            f"{mean(dice):.3f}",
            f"{min(dice):.3f} to {max(dice):.3f}" if len(dice) > 1 else "",
            *[in_words(to_stock)] * has_stock,
            *[in_words(difference(runs, by_row[base])) if base else ""] * has_effects,
            *[in_words(difference(runs, scratch[row]))] * any(scratch.values()),
            *(f"{mean(r['dice_per_label'][label] for r in runs):.3f}" for label in labels),
            str(first["iterations"]),
            str(first["batch_size"]),
            "x".join(map(str, first["patch_size"])),
            f"{first['parameters'] / 1e6:.1f} M",
            *([f"{first['calibrated_seconds']:.2f}", f"{cost(first) / 60:.0f}"] if has_costs else []),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pretraining_table(made: Iterable[dict[str, Any]]) -> str:
    """Markdown table of pretrainings: images, samples, processor time in units, and the first and last logged loss."""
    lines = ["| network | method | images | samples | units of CPU time | loss |", "|---|---|---|---|---|---|"]
    for record in made:
        given, settings = PRETRAININGS[record["pretraining"]], record["settings"]
        samples = settings["data.init_args.samples_per_epoch"] * settings["trainer.max_epochs"]
        losses = [value for _, value in record["curve"].get("loss", [])]
        images = heading_of(DATA[given.dataset])
        cells = [ROWS[given.row].title, given.title, images, f"{samples:,}", f"{record.get('units', '')}"]
        lines.append(
            f"| {' | '.join(cells)} | {losses[0]:.2f} to {losses[-1]:.2f} |" if losses else f"| {' | '.join(cells)} | |"
        )
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
    """Mean difference over the patients that both have, and its 95 % bootstrap interval; None if there are none.

    Both are means over seeds: over those that both have, if a seed draws the labelled cases.
    """
    if reference and DATA[reference[0]["dataset"]].labelled:
        shared = {r["seed"] for r in records} & {r["seed"] for r in reference}
        records, reference = ([r for r in side if r["seed"] in shared] for side in (records, reference))
    ours, theirs = patient_dice(records), patient_dice(reference)
    differences = np.array([ours[patient] - theirs[patient] for patient in sorted(ours.keys() & theirs.keys())])
    if not differences.size:
        return None
    resampled = np.random.default_rng(0).choice(differences, (RESAMPLES, differences.size)).mean(axis=1)
    low, high = np.percentile(resampled, INTERVAL)
    return float(differences.mean()), float(low), float(high)


def draw(records: Records) -> Figure:
    """Draw Dice of validation patches against processor time, or iterations, a panel for each dataset and budget.

    Panels of a single network are left out where others have more. The mark at the end, and the number in the legend,
    is the Dice of whole cases. All are means over seeds.
    """
    panels = [
        (dataset, budget, part)
        for dataset in DATA
        for budget in BUDGETS
        if (part := [r for r in records if (r["dataset"], r["budget"]) == (dataset, budget)])
    ]
    panels = [panel for panel in panels if len({r["row"] for r in panel[2]}) > 1] or panels
    drawn = [row for row in ROWS if any(r["row"] == row for *_, part in panels for r in part)]
    columns = min(len(panels), COLUMNS)
    figure = Figure(figsize=(4.6 * columns, 5.0 * -(-len(panels) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for (dataset, budget, part), axes in zip(panels, grid, strict=False):
        for index, row in enumerate(drawn):
            if runs := [r for r in part if r["row"] == row]:
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                curve = _mean([r["curve"]["pseudo_dice"] for r in runs])
                length = cost(runs[0]) / 60 if BUDGETS[budget].units else runs[0]["iterations"]
                done = length * np.arange(1, len(curve) + 1) / runs[0]["epochs"]
                final = mean(r["dice"] for r in runs)
                axes.plot(done, curve, color=colour, linewidth=1.2, linestyle="-" if index < len(COLOURS) else "--")
                label = f"{ROWS[row].title}, {final:.3f}"
                axes.plot(done[-1:], [final], marker, color=colour, markersize=6, alpha=0.8, label=label)
        # in two lines, as titles stand beside each other
        title = "\n".join(heading(dataset, budget).replace("`", "").rsplit(", ", 1))
        axes.set(title=title, xlabel="CPU time, minutes" if BUDGETS[budget].units else "iterations", ylabel="Dice")
        axes.grid(alpha=0.3)
        # below the curves, which it would hide
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    for axes in list(grid):
        axes.set_axis_off()
    return figure


def _mean(curves: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Mean of curves over their common length."""
    length = min(map(len, curves))
    # None, of a loss that is not finite, becomes NaN
    return np.mean(np.array([curve[:length] for curve in curves], dtype=float), axis=0)
