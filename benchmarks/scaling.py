"""Time and memory against patch size, batch and number of images, with fitted exponents.

    python benchmarks/scaling.py [--threads 2] [--device cpu] [--output benchmarks/results/scaling]

writes OUTPUT.json, .md and .png. A training step (forward, backward, AdamW, float32) at each patch size and batch, and
nnU-Net's sliding window over 1, 2 and 4 images of 1.5 patches per axis, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from nnunet_transformers.benchmarking.measure import Settings
from nnunet_transformers.benchmarking.networks import REFERENCE, known_networks
from nnunet_transformers.benchmarking.scaling import fit_power_law, in_child, prediction, training_step

NETWORKS = ("qt_unet_tiny", "unet2022_tiny", "mit_7", REFERENCE)
EDGES, BATCHES, IMAGES = (32, 64, 96, 128), (1, 2, 4), (1, 2, 4)
# of the steps at several batch sizes, and of prediction
EDGE = 64
# a series' name: quantity, heading and factor to the heading's unit
SERIES = {
    "patch": (("seconds", "step, s", 1.0), ("bytes", "step, GiB", 2.0**-30)),
    "batch": (("seconds", "step, s", 1.0), ("bytes", "step, GiB", 2.0**-30)),
    "images": (("seconds", "prediction, s", 1.0),),
}
AXES = {"patch": "voxels of the patch", "batch": "batch", "images": "images"}


def measure(name: str, edges: Sequence[int], settings: Settings) -> dict[str, list[dict]]:
    """All points of a network: by series a list of {"x", "seconds" and, of training, "bytes"}."""

    def step(edge: int, batch_size: int) -> dict[str, float]:
        return in_child(training_step, name, replace(settings, patch_size=(edge,) * 3, batch_size=batch_size))

    window = replace(settings, patch_size=(EDGE,) * 3)
    return {
        "patch": [{"x": edge**3, "patch_size": (edge,) * 3, **step(edge, 1)} for edge in edges],
        "batch": [{"x": batch, **step(EDGE, batch)} for batch in BATCHES],
        "images": [{"x": images, **in_child(prediction, name, window, images)} for images in IMAGES],
    }


def fit(points: dict[str, list[dict]]) -> dict[str, dict[str, dict[str, float]]]:
    """Power laws by series and quantity."""
    return {
        series: {
            key: asdict(fit_power_law([p["x"] for p in points[series]], [p[key] for p in points[series]]))
            for key, _, _ in quantities
        }
        for series, quantities in SERIES.items()
    }


def tables(content: dict[str, Any]) -> str:
    """Markdown: for each series the points, with the exponent and its standard error last."""
    lines = []
    for series, quantities in SERIES.items():
        points = next(iter(content["networks"].values()))["points"][series]
        names = ["x".join(map(str, p["patch_size"])) if series == "patch" else str(p["x"]) for p in points]
        for key, heading, factor in quantities:
            lines += [f"| {heading} | {' | '.join(names)} | exponent |", "|---" * (len(names) + 2) + "|"]
            for name, network in content["networks"].items():
                values = " | ".join(f"{p[key] * factor:.3g}" for p in network["points"][series])
                law = network["fits"][series][key]
                lines.append(f"| {name} | {values} | {law['exponent']:.2f} ± {law['standard_error']:.2f} |")
            lines.append("")
    return "\n".join(lines)


def draw(content: dict[str, Any]) -> Figure:
    """A panel for each series and quantity, logarithmic, with the fits as lines."""
    panels = [(series, *quantity) for series, quantities in SERIES.items() for quantity in quantities]
    figure = Figure(figsize=(11, 7.4))
    *grid, empty = figure.subplots(2, 3).flat
    empty.set_axis_off()
    for axes, (series, key, heading, factor) in zip(grid, panels, strict=True):
        for index, (name, network) in enumerate(content["networks"].items()):
            points, law = network["points"][series], network["fits"][series][key]
            x = [point["x"] for point in points]
            label = f"{name}: {law['exponent']:.2f} ± {law['standard_error']:.2f}"
            axes.plot(x, [p[key] * factor for p in points], "osD^"[index], color=f"C{index}", markersize=4, label=label)
            line = [factor * law["factor"] * value ** law["exponent"] for value in x]
            axes.plot(x, line, color=f"C{index}", linewidth=1)
        top = factor * max(p[key] for network in content["networks"].values() for p in network["points"][series])
        # room for the legend
        axes.set(xscale="log", yscale="log", title=f"{heading}, by {AXES[series]}")
        axes.set_ylim(top=6 * top)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        names = [f"{round(n ** (1 / 3))}³" if series == "patch" else str(n) for n in x]
        axes.set_xticks(x, names)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, title="exponent", title_fontsize=8, loc="upper left")
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="a step is repeated for so long, and twice at least")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=known_networks(3), metavar="NAME")
    parser.add_argument("--edges", nargs="+", type=int, default=EDGES, help="of the cubic patches, three or more")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    settings = Settings((EDGE,) * 3, device=arguments.device, threads=arguments.threads, seconds=arguments.seconds)
    content = {"threads": arguments.threads, "device": arguments.device, "torch": torch.__version__, "networks": {}}
    for name in arguments.networks:
        points = measure(name, arguments.edges, settings)
        content["networks"][name] = {"points": points, "fits": fit(points)}
        print(name, json.dumps(content["networks"][name]["fits"]), flush=True)
    print(f"\n{tables(content)}")
    if arguments.output:
        arguments.output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(tables(content))
        draw(content).savefig(arguments.output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
