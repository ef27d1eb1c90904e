"""Page of ``compare``: tables, intervals of the differences, and where the models differ most, with error maps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..._atomic import write_text
from ..comparison import Comparison
from ..results import MEAN, Evaluation, larger_is_better
from ..statistics import nan_mean
from ..tables import shown
from .cards import STYLE as CARDS
from .cards import keys, section
from .compared_case import Sources, read_case
from .document import document, escape, scrolling, table_of
from .facts import facts_of, fold_of, table_of_facts, written_with
from .figures import draw_differences, most_labelled_slice

STYLE = f"""
body {{ max-width: 1200px; }} tr.mean td {{ font-weight: inherit; }} tr.mean td b {{ font-weight: 700; }}
{CARDS}"""


def write_comparison(
    comparison: Comparison,
    evaluations: Mapping[str, Evaluation],
    output: Path,
    folders: Mapping[str, Path] | None = None,
    labels: Path | None = None,
    images: Path | None = None,
    pictures: int = 6,
    cases: int = 10,
) -> Path:
    """Write the page of a comparison.

    Args:
        comparison: result of ``compare``.
        evaluations: the compared evaluations by the model's name.
        output: HTML file.
        folders: of each model a folder with its segmentations; by default, and if they are not there, those that its
            evaluation states.
        labels: folder of the reference segmentations; by default those that the evaluations state.
        images: folder of the images, in nnU-Net's naming; without it segmentations are drawn on grey.
        pictures: number of cases to draw, of those that differ most.
        cases: number of cases of each metric in the table.

    Returns:
        the written file. A case whose segmentations are not on this machine is named there instead of drawn.

    Raises:
        FileNotFoundError: if ``images`` lacks a case that is drawn.
        ValueError: if a file cannot be read, or segmentations of a case have different sizes.
    """
    sources = Sources(evaluations, folders or {}, labels, images)
    first = evaluations[comparison.models[0]]
    parts = [[int(value) for value in re.findall(r"\d+", key)] for key in first.labels]
    names = [*first.labels.values()]
    sections = [
        _section(number, case, label, comparison, sources, parts, names)
        for number, (case, label) in enumerate(_chosen(comparison, pictures))
    ]
    tables = comparison.tables(cases)
    plots = "".join(
        f"<figure><img class='plot' src='{draw_differences(comparison.differences, metric)}' "
        f"alt='{escape(metric)}: differences with their intervals, see the table'></figure>"
        for metric in comparison.metrics
    )
    title = f"Comparison of {', '.join(comparison.models)}"
    note = " ".join([f"{len(comparison.cases)} cases; {', '.join(comparison.metrics)}.", *comparison.remarks])
    drawn = "".join(sections) or "<p class='note'>The models differ in no case.</p>"
    body = f"""<h1>{escape(title)}</h1>
<p class="note">{escape(note)}</p>
{_means(comparison)}
<h2>Where they differ most</h2>{keys(names)}{drawn}
{table_of(tables["differences"])}
<p class="note">Mean of first - second with its 95 % bootstrap interval; p of Wilcoxon's signed-rank test, and after
Holm's correction. A filled mark has p (Holm) below 0.05.</p>{plots}
{table_of(tables["ranks"])}
{table_of(tables["cases"])}{_models(comparison.models, sources.folders)}
<p class="note">{escape(written_with())}</p>"""
    write_text(document(title, body, STYLE), output)
    return output


def _models(models: Sequence[str], folders: Mapping[str, Path]) -> str:
    """Return the table of what is known of the models that are folds on this machine; empty if there are none."""
    facts: dict[str, dict[str, str]] = {}
    for model in models:
        if model in folders and (fold := fold_of(folders[model].resolve())) is not None:
            with suppress(OSError, ValueError):  # of a damaged plan nothing is known
                facts[model] = facts_of(fold)
    return f"<h2>Models</h2>{scrolling(table_of_facts(facts, headed=True), 'Models')}" if facts else ""


def _means(comparison: Comparison) -> str:
    """Return the table of the means with a row for each label; the best of the models is bold."""
    means = nan_mean(comparison.values, 1)
    heads = [f"{metric}, {model}" for metric in comparison.metrics for model in comparison.models]
    best = [max if larger_is_better(metric) else min for metric in comparison.metrics]
    rows = []
    for i, label in enumerate(comparison.labels):
        cells = [f"<td>{escape(label)}</td>"]
        for m in range(len(comparison.metrics)):
            of_models = means[:, i, m].tolist()
            reached = best[m]([v for v in of_models if not math.isnan(v)], default=math.nan)
            cells += [f"<td>{f'<b>{shown(v)}</b>' if v == reached else shown(v)}</td>" for v in of_models]
        rows.append(f"<tr{' class=mean' * (label == MEAN)}>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(text)}</th>" for text in ("label", *heads))
    title = f"Means over {len(comparison.cases)} cases"
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f"<h2>{title}</h2>{scrolling(table, title)}"


def _chosen(comparison: Comparison, number: int) -> list[tuple[str, str]]:
    """Return case and label of those that differ most, of each metric in turn, every case once."""
    found = comparison.most_different(number)
    by_metric = [[(case, label) for m, case, label, _ in found if m == metric] for metric in comparison.metrics]
    chosen: dict[str, str] = {}
    for rank in range(number):
        for cases in by_metric:
            if rank < len(cases):
                chosen.setdefault(*cases[rank])
    return [*chosen.items()][:number]


def _section(
    number: int,
    case: str,
    label: str,
    comparison: Comparison,
    sources: Sources,
    parts: Sequence[Sequence[int]],
    names: Sequence[str],
) -> str:
    """Draw a case in the slice where the models differ most in a label."""
    row, column = comparison.cases.index(case), comparison.labels.index(label)
    scores = []
    for metric, values in zip(comparison.metrics, comparison.values[:, row, column].T.tolist(), strict=True):
        of_models = (f"{model} {shown(v)}" for model, v in zip(comparison.models, values, strict=True))
        scores.append(f"{metric} {', '.join(of_models)}")
    note = f"{label}: {'; '.join(scores)}"
    drawn = read_case(case, comparison.models, sources, parts)
    if isinstance(drawn, str):
        return f"<section><h3>{escape(case)}</h3><p class='note'>{escape(note)}. {escape(drawn)}</p></section>"
    index = slice_that_differs(drawn.label, drawn.predictions, parts, parts[names.index(label)])
    return section(case, note, drawn, index, comparison.models, len(parts), number)


def slice_that_differs(
    label: NDArray, predictions: Sequence[NDArray], parts: Sequence[Sequence[int]], part: Sequence[int]
) -> int:
    """Return the slice in which the predictions differ from each other in most voxels of a part.

    If they do not differ in it, the slice where they differ in any part; then where they are wrong; then the one with
    most of the label.

    Args:
        label, predictions: (slices, height, width), indices into ``parts``; -1 for none.
        parts: values of each label or region.
        part: the values of one of them; other parts count as it where their values are among its.
    """
    inner = [i for i, values in enumerate(parts) if set(values) <= set(part)]
    masks = [np.isin(prediction, inner) for prediction in predictions]
    for maps in (masks, predictions, [label, *predictions]):
        counts = np.sum([(other != maps[0]) for other in maps[1:]], axis=0).sum(axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return most_labelled_slice(label + 1)
