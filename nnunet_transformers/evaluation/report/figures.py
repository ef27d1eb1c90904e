"""Figures of the report, as PNG data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import ndimage

from ..comparison import Difference
from .palette import distinct_colours


def _to_data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_series(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    unit: str = "step",
    limits: tuple[float, float] | None = None,
    colours: Sequence[str] = ("#0072b2", "#d55e00"),
) -> str:
    """Draw one line a name; of many points also their running median over a fiftieth of them.

    Args:
        series: steps and values by name.
        title: title of the figure.
        unit: what is counted along the axis.
        limits: of the values; by default theirs.
        colours: of the lines.
    """
    figure = Figure(figsize=(5, 3))
    axes = figure.subplots()
    lines = []
    for (steps, values), colour in zip(series.values(), colours, strict=False):
        width = len(values) // 50
        marker = "o" if len(values) < 30 else ""
        lines += axes.plot(steps, values, marker=marker, markersize=3, color=colour, alpha=0.3 if width > 1 else 1)
        if width > 1:
            smooth = ndimage.median_filter(np.asarray(values), 2 * width + 1, mode="nearest")
            axes.plot(steps, smooth, color=colour)
    axes.set(xlabel=unit, title=title, ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.title.set_parse_math(False)
    if series:
        # by lines and names, as names that begin with an underscore are otherwise left out
        for text in axes.legend(lines, [*series][: len(lines)], fontsize=8).get_texts():
            text.set_parse_math(False)  # a label named $x is no formula
    return _to_data_uri(figure)


def draw_differences(differences: Sequence[Difference], metric: str) -> str:
    """Draw the mean difference of each pair of models in each label with its 95 % interval.

    A filled mark has a p-value after Holm's correction below 0.05.
    """
    chosen = [d for d in differences if d.metric == metric]
    pairs = list(dict.fromkeys((d.first, d.second) for d in chosen))
    labels = list(dict.fromkeys(d.label for d in chosen))
    figure = Figure(figsize=(7.5, 1.3 + 0.14 * len(labels) * (len(pairs) + 1)))
    axes = figure.subplots()
    marks: dict[str, Line2D] = {}
    for pair, colour in zip(pairs, distinct_colours(len(pairs)), strict=True):
        offset = 0.7 * ((pairs.index(pair) + 0.5) / len(pairs) - 0.5)
        for d in (d for d in chosen if (d.first, d.second) == pair):
            height = labels.index(d.label) + offset
            axes.plot([d.low, d.high], [height, height], color=colour, linewidth=2)
            filled = colour if d.p_holm < 0.05 else "white"
            (mark,) = axes.plot(d.mean, height, "o", color=colour, markerfacecolor=filled, markersize=5)
            marks.setdefault(" - ".join(pair), mark)
    axes.axvline(0, color="#444", linewidth=1)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    ticks = axes.set_yticks(range(len(labels)), labels=labels)
    axes.set(xlabel=f"difference of {metric}")
    axes.grid(axis="x", alpha=0.3)
    key = axes.legend([*marks.values()], [*marks], fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    for text in [*key.get_texts(), axes.xaxis.label, *(tick.label1 for tick in ticks)]:
        text.set_parse_math(False)
    return _to_data_uri(figure)


def index_of_part(segmentation: np.ndarray, parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Which of the parts each voxel is drawn as; -1 for none.

    Regions that lie in others are drawn over them: the one with fewest values counts.
    """
    index = np.full(segmentation.shape, -1)
    for part in sorted(range(len(parts)), key=lambda i: -len(parts[i])):
        index[np.isin(segmentation, parts[part])] = part
    return index


def mask_ignored(prediction: np.ndarray, truth: np.ndarray, ignore: int | None) -> None:
    """Make the prediction background, in place, where the reference has the ignore label: that is no error."""
    if ignore is not None:
        prediction[truth == ignore] = 0


def most_labelled_slice(label: np.ndarray) -> int:
    """Return the index of the slice with most foreground along the first axis; the middle slice if there is none."""
    foreground = (label > 0).sum(axis=(1, 2))
    return int(foreground.argmax()) if foreground.any() else label.shape[0] // 2
