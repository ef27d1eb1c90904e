"""The picture of the README: validation cases of a fold, from the worst to the best, label above prediction.

    PYTHONPATH=. python benchmarks/picture.py .../fold_0 IMAGES docs/hippocampus.png

FOLD has its validation, IMAGES is the dataset's imagesTr. Slices are those with most of the label, drawn as reports do.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from nnunet_transformers.evaluation import Evaluation
from nnunet_transformers.evaluation.report.cards import DrawnCase
from nnunet_transformers.evaluation.report.compared_case import Sources, read_case
from nnunet_transformers.evaluation.report.figures import most_labelled_slice
from nnunet_transformers.evaluation.report.palette import distinct_colours
from nnunet_transformers.evaluation.segmentations import DATASET_JSON, load_dataset_json

CASES = 5
OPACITY = 0.5
LETTERS: dict[str, Any] = {"color": "white", "fontsize": 9, "fontweight": "bold"}
OUTLINED = [withStroke(linewidth=2, foreground="black")]


def chosen(evaluation: Evaluation, number: int) -> list[tuple[str, float]]:
    """Return names and mean Dice of cases from the worst to the best, at equal steps of rank."""
    dice = np.nanmean(evaluation.of("Dice"), axis=1)
    order = np.argsort(dice)[np.linspace(0, len(dice) - 1, number).round().astype(int)]
    return [(evaluation.cases[i], float(dice[i])) for i in order]


def draw(cases: list[tuple[str, float, DrawnCase]], names: list[str]) -> Figure:
    """Draw a column for each case."""
    colours = distinct_colours(len(names))
    figure = Figure(figsize=(2 * len(cases), 6.2), facecolor="white", layout="constrained")
    rows = figure.subplots(2, len(cases), squeeze=False)
    for column, (case, dice, drawn) in enumerate(cases):
        assert drawn.image is not None
        index = most_labelled_slice(drawn.label + 1)
        low, high = np.percentile(drawn.image[index], [0.5, 99.5])
        _, row_mm, column_mm = drawn.view.spacing
        for axes, parts in zip(rows[:, column], (drawn.label, drawn.predictions[0]), strict=True):
            aspect = row_mm / column_mm
            axes.imshow(drawn.image[index], cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bicubic")
            axes.imshow(
                np.ma.masked_less(parts[index], 0),
                cmap=ListedColormap(colours),
                vmin=0,
                vmax=max(1, len(names) - 1),
                alpha=OPACITY,
                aspect=aspect,
                interpolation="nearest",
            )
            for part, colour in enumerate(colours):
                if (parts[index] == part).any():
                    axes.contour(parts[index] == part, [0.5], colors=[colour], linewidths=1.5)
            axes.set(xticks=[], yticks=[])
            if (edges := drawn.view.edges) is not None:
                places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
                sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
                for letter, (x, y), (ha, va) in zip(edges, places, sides, strict=True):
                    axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va, path_effects=OUTLINED, **LETTERS)
        rows[0, column].set_title(f"case {case.rpartition('_')[2]}, Dice {dice:.3f}", fontsize=10)
    for axes, text in zip(rows[:, 0], ("label", "prediction"), strict=True):
        axes.set_ylabel(text, fontsize=11)
    key = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=key, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def main() -> None:
    """Draw and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fold", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    evaluation = Evaluation.load(arguments.fold / "validation" / "summary.json")
    parts = [[int(value) for value in re.findall(r"\d+", key)] for key in evaluation.labels]
    sources = Sources({"": evaluation}, {"": arguments.fold / "validation"}, None, arguments.images)
    cases = []
    for case, dice in chosen(evaluation, CASES):
        drawn = read_case(case, [""], sources, parts)
        if isinstance(drawn, str):
            raise FileNotFoundError(f"{case}: {drawn}")
        cases.append((case, dice, drawn))
    described = load_dataset_json(arguments.fold.parent / DATASET_JSON)["labels"]
    names_of = {str(value): name for name, value in described.items()}
    draw(cases, [names_of.get(key, key) for key in evaluation.labels]).savefig(arguments.output, dpi=100)
    print(f"{arguments.output}: mean Dice {np.nanmean(evaluation.of('Dice')):.3f} of {len(evaluation.cases)} cases")


if __name__ == "__main__":
    main()
