"""The picture of docs/planner.md: patch, token grids and attention windows of a planned and of a published network.

    PYTHONPATH=. python benchmarks/tiles.py docs/tiles.png

nilearn's ICBM 152 template at 1 mm is planned as a dataset of heads would be, and the thesis's preset for BraTS is
applied to it, so that both rows are what a plan says.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from PIL import Image

from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.architectures.qt_unet import QTUNet
from nnunet_transformers.demo import dataset as demo
from nnunet_transformers.plans.presets import apply_preset, get_preset

CASES = 3
PLANNER, PRESET = "nnUNetPlannerQTUNetT", "brats2021-tiny"
COLOURS = "#56b4e9", "#e69f00", "#d55e00"  # windows in turn, padding


def write_heads(raw: Path) -> np.ndarray:
    """A dataset of the template alone, and its image; planning asks for sizes, spacing and intensities only."""
    with patch.object(demo, "SPACING", 1.0):
        image, label = demo._template()
    folder = raw / demo.NAME
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for case in range(CASES):
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / f"imagesTr/head_{case:02d}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(folder / f"labelsTr/head_{case:02d}.nii.gz"))
    description = {"channel_names": {"0": "T1"}, "labels": demo.LABELS, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return image


def partitions(configuration: Mapping[str, Any]) -> list[WindowPartition]:
    """How each stage of a plan's encoder is cut into windows, finest first."""
    network = QTUNet(input_channels=1, num_classes=2, **configuration["architecture"]["arch_kwargs"])
    stages: dict[tuple[int, ...], WindowPartition] = {}
    for module in network.encoder.modules():
        if isinstance(module, WindowPartition):
            stages.setdefault(module.grid_size, module)
    return list(stages.values())


def crop(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The middle slice of a patch in the middle of the image."""
    starts = [(n - s) // 2 for n, s in zip(image.shape, size, strict=True)]
    padded = np.pad(
        image, [(max(0, -start), max(0, s - n)) for start, s, n in zip(starts, size, image.shape, strict=True)]
    )
    _, height, width = (slice(max(0, start), max(0, start) + s) for start, s in zip(starts, size, strict=True))
    return padded[padded.shape[0] // 2, height, width]


def reach(stage: WindowPartition, size: tuple[int, ...]) -> list[float]:
    """Height and width in voxels of all windows of a stage."""
    return [p / g * s for p, g, s in zip(stage.padded_size, stage.grid_size, size, strict=True)][1:]


def draw_stage(axes: Axes, image: np.ndarray, stage: WindowPartition, end: tuple[float, float]) -> None:
    """Tokens as thin lines, windows as coloured tiles, what pads them hatched."""
    height, width = image.shape
    rows, columns = (p // w for p, w in zip(stage.padded_size[1:], stage.window_size[1:], strict=True))
    axes.imshow(image, cmap="gray", extent=(0, width, height, 0), interpolation="bilinear")
    for lines, draw in ((stage.grid_size[1], axes.hlines), (stage.grid_size[2], axes.vlines)):
        limit, other = (height, width) if draw == axes.hlines else (width, height)
        draw(np.linspace(0, limit, lines + 1), 0, other, color="white", linewidth=0.4, alpha=0.7)
    for row, column in np.ndindex(rows, columns):
        corner = column * end[1] / columns, row * end[0] / rows
        tile, colour = (corner, end[1] / columns, end[0] / rows), COLOURS[(row + column) % 2]
        axes.add_patch(Rectangle(*tile, facecolor=colour, alpha=0.22))
        axes.add_patch(Rectangle(*tile, fill=False, edgecolor=colour, linewidth=1.4))
    for corner, across, down in (((width, 0), end[1] - width, end[0]), ((0, height), width, end[0] - height)):
        if min(across, down) > 0:
            axes.add_patch(Rectangle(corner, across, down, facecolor="none", edgecolor=COLOURS[2], hatch="////", lw=0))
    grid, window = ("x".join(map(str, values)) for values in (stage.grid_size, stage.window_size))
    share = prod(stage.padded_size) / prod(stage.grid_size)
    padding = "no padding" if share == 1 else f"{share:.1f} times the tokens"
    axes.set_title(
        f"{grid} tokens\n{stage.num_windows} window{'s' * (stage.num_windows > 1)} of {window}\n{padding}",
        fontsize=8,
        loc="left",
    )
    axes.axis("off")


def draw(image: np.ndarray, configurations: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A row for each configuration, a column for each stage, all at one scale."""
    sizes = [tuple(c["patch_size"]) for c in configurations.values()]
    stages = [partitions(c) for c in configurations.values()]
    ends = [[reach(stage, size) for stage in row] for row, size in zip(stages, sizes, strict=True)]
    heights = [max(end[0] for end in row) for row in ends]
    widths = [max(end[1] for end in column) for column in zip(*ends, strict=True)]
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    panels = figure.subplots(len(stages), len(widths), width_ratios=widths, height_ratios=heights)
    for axes, name, size, row, row_ends, height in zip(
        panels, configurations, sizes, stages, ends, heights, strict=True
    ):
        shown = crop(image, size)
        for panel, stage, end, width in zip(axes, row, row_ends, widths, strict=True):
            draw_stage(panel, shown, stage, end)
            panel.set(xlim=(-1, width + 1), ylim=(height + 1, -1))
        label = f"{name}, patch {'x'.join(map(str, size))}"
        axes[0].text(-0.08, 1, label, transform=axes[0].transAxes, rotation=90, ha="center", va="top", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = f"{folder}/{name}"
            Path(folder, name).mkdir()
        image = write_heads(Path(folder, "raw"))
        number = int(demo.NAME[7:10])
        extract_fingerprints([number], num_processes=1)
        plans = plan_experiments([number], PLANNER)
        planned = json.loads(Path(folder, "preprocessed", demo.NAME, f"{plans}.json").read_text())
        published = apply_preset(get_preset(PRESET), str(number)).configuration
    rows = {"planned": planned["configurations"]["3d_fullres"], "published": published}
    figure = draw(image, rows)
    figure.savefig(output, dpi=100)
    with Image.open(output) as picture:
        reduced = picture.convert("RGB").quantize(64)
    reduced.save(output, optimize=True)
    print(f"{output}: {output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
