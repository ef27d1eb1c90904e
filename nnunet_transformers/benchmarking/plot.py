"""Plot memory against time, with the Pareto front of the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from .._atomic import replacing
from .networks import is_ours
from .results import describe

OURS, PEERS, FRONT = "#0072b2", "#d55e00", "#999999"
# a label further from its dot than this, in points, is connected to it by a line
NEAR = 14
# candidate positions of a label: offset from its dot in points, and its alignment there
PLACES = [
    ((x * distance, y * distance), {1: "left", 0: "center", -1: "right"}[x], {1: "bottom", 0: "center", -1: "top"}[y])
    for distance in (6, 14, 24, 36, 50, 66, 84)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names on the Pareto front of points, in the order of the first coordinate; smaller is better."""
    front: list[str] = []
    for name in sorted(points, key=points.__getitem__):
        if not front or points[name][1] < points[front[-1]][1]:
            front.append(name)
    return front


def draw_pareto(content: Mapping[str, Any], path: Path) -> bool:
    """Plot the memory of a training step against its time on logarithmic axes; no file if all networks failed.

    Args:
        content: result of ``run_benchmark``.
        path: PNG file to write.

    Returns:
        whether it was written.
    """
    points = {
        name: (figures["training_step_s"]["median"] * 1e3, figures["training_bytes"]["median"] / 1e9)
        for name, figures in content["networks"].items()
        if "failed" not in figures
    }
    if not points:
        return False
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, own, marker in (("nnunet-transformers", True, "o"), ("others", False, "s")):
        chosen = [point for name, point in points.items() if is_ours(name) == own]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.scatter(x, y, c=OURS if own else PEERS, marker=marker, label=label, zorder=3)
    front = [points[name] for name in pareto_front(points)]
    ring: dict[str, Any] = {"marker": "o", "markersize": 13, "fillstyle": "none"}
    axes.plot(*zip(*front, strict=True), color=FRONT, linestyle="--", label="Pareto front", zorder=1, **ring)
    axes.set(xscale="log", yscale="log", xlabel="training step, ms", ylabel="peak memory of a training step, GB")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.margins(0.15)
    axes.grid(which="both", alpha=0.25)
    legend = axes.legend(loc="upper left", fontsize=8)
    axes.set_title(fill(describe(content), 110), fontsize=7)
    figure.draw_without_rendering()
    _label(axes, legend, points, canvas.get_renderer())
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
    return True


def _label(axes: Axes, legend: Legend, points: Mapping[str, tuple[float, float]], renderer: RendererAgg) -> None:
    """Write each point's name beside it, where it overlaps other names, points and the legend least."""
    dots = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(list(points.values()))]
    taken = [*dots, legend.get_window_extent(renderer)]
    inside = axes.get_window_extent(renderer)
    for index, (name, point) in enumerate(points.items()):
        best = None
        for offset, horizontal, vertical in PLACES:
            text = axes.annotate(
                name, point, offset, textcoords="offset points", ha=horizontal, va=vertical, fontsize=8
            )
            box = text.get_window_extent(renderer)
            others = [b for b in taken if b is not dots[index]]
            overlaps = _overlap(box, others) + (0 if _contains(inside, box) else box.width * box.height)
            if best is None or overlaps < best[0]:
                if best is not None:
                    best[1].remove()
                best = overlaps, text, box, offset
            else:
                text.remove()
            if not overlaps:
                break
        assert best is not None  # PLACES is not empty
        taken.append(best[2])
        if max(map(abs, best[3])) > NEAR:
            leader = {"arrowstyle": "-", "color": FRONT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, best[3], textcoords="offset points", arrowprops=leader, zorder=2)


def _overlap(box: Bbox, others: Sequence[Bbox]) -> float:
    """Compute the area that a box shares with others."""
    shared = (Bbox.intersection(box, other) for other in others)
    return sum(part.width * part.height for part in shared if part is not None)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1
