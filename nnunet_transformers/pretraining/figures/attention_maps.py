"""Figure of the attention between a radiograph and its radiology report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..report_attention import ReportAttention

# supplement, table 7: the ten words of largest weight in red
RED_WORDS, WORDS_PER_LINE = 10, 12


def draw_attention(attention: ReportAttention, output: Path, words: int = 6) -> None:
    """Draw the image, the weights of its patches, the maps of the words of largest weight, and the report.

    The panels follow figure 1 of MGCA's supplement, the report with the words of largest weight in red its table 7.

    Args:
        attention: result of ``attend``.
        output: file to write, PNG or another of matplotlib's formats.
        words: number of maps to draw.
    """
    order = np.argsort(-attention.word_weights, kind="stable")
    shown = order[:words]
    panels: list[tuple[str, NDArray | None]] = [("image", None)]
    if attention.patch_weights is not None:
        panels.append(("weights of patches", attention.patch_weights))
    panels += [(attention.words[i], attention.maps[i]) for i in shown]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    lines = -(-len(attention.words) // WORDS_PER_LINE)
    text_height = 0.3 * lines + 0.2
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows + text_height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.8 * rows, text_height]).ravel()
    axes = upper.subplots(rows, columns, squeeze=False).ravel()
    image = attention.image.mean(0)
    extent = (0, image.shape[1], image.shape[0], 0)
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, weights) in zip(axes, panels, strict=False):
        axis.imshow(image, cmap="gray", extent=extent)
        if weights is not None:
            # transparent where the weight is 0
            alpha = 0.8 * weights / weights.max()
            axis.imshow(weights, cmap="autumn_r", alpha=alpha, extent=extent, interpolation="bilinear")
        axis.set_title(title, fontsize=9, parse_math=False)
    red = set(order[:RED_WORDS].tolist())
    axis = lower.subplots()
    axis.set_axis_off()
    for number, word in enumerate(attention.words):
        line, column = divmod(number, WORDS_PER_LINE)
        place = ((column + 0.5) / WORDS_PER_LINE, 1 - (line + 0.5) / lines)
        colour = "tab:red" if number in red else "black"
        axis.text(
            *place,
            word,
            color=colour,
            ha="center",
            va="center",
            fontsize=9,
            transform=axis.transAxes,
            parse_math=False,
        )
    figure.savefig(output, dpi=110)
