"""README's tables of Dice are those of the benchmark's committed runs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from benchmarks.accuracy.runs import read_lines
from benchmarks.accuracy.tables import JUDGED_FOLD

ROOT = Path(__file__).parents[3]
DATASETS = ("hippocampus", "em", "acdc_2d", "acdc_3d")
BEFORE = "qt_unet_branch_drop_path_01"
ROWS = {
    "nnU-Net, PlainConvUNet": ["stock"],
    "nnU-Net, ResEnc-M": ["resenc_m"],
    "nnU-Net, PrimusV3-S": ["primus_v3_s"],
    "QT-UNet T, as planned": ["qt_unet_branch"],
    # in 3D, on EM, on ACDC in 2D
    "QT-UNet T, as planned before": [BEFORE, f"{BEFORE}_windows_16", f"{BEFORE}_windows_16_fine"],
    "QT-UNet T, published head and drop path": ["qt_unet"],
    "UNet-2022 T, as planned": ["unet2022"],
    "UNet-2022 T, published drop path": ["unet2022_drop_path_02"],
    "MiT-7": ["mit"],
    "MiT-7, as planned before": ["mit_fine"],
}


def tables():
    """The cells of both tables by row."""
    text = (ROOT / "README.md").read_text()
    parts = text.split("| | hippocampus, 3D | EM, 2D | ACDC, 2D | ACDC, 3D |\n|---|---|---|---|---|\n")[1:]
    lines = (part.partition("\n\n")[0].splitlines() for part in parts)
    return [{first: cells for line in part for first, *cells in [line.strip("| ").split(" | ")]} for part in lines]


@pytest.mark.parametrize("number, budget", [(0, "quarter"), (1, "whole")])
def test_cells(number, budget):
    """The mean over seeds, with a star where fewer than three are behind it; the larger budget has one of each."""
    runs = [
        run
        for run in read_lines(ROOT / "benchmarks" / "results" / "accuracy.jsonl")
        if (run["budget"], run["fold"]) == (budget, JUDGED_FOLD)
    ]
    given = tables()[number]
    trained = {run["row"] for run in runs if run["dataset"] in DATASETS}
    assert {title for title, rows in ROWS.items() if trained & set(rows)} == set(given)
    for title, cells in given.items():
        for dataset, cell in zip(DATASETS, cells, strict=True):
            dice = [run["dice"] for run in runs if run["dataset"] == dataset and run["row"] in ROWS[title]]
            star = "*" if budget == "quarter" and len(dice) < 3 else ""
            assert cell == (f"{mean(dice):.3f}{star}" if dice else "-"), (title, dataset)
            assert budget == "quarter" or len(dice) < 2
