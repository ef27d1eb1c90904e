"""Commands ``evaluate-iou`` and ``report``: evaluation of predictions, and a report on a trained fold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._atomic import write_json
from ._options import Trust
from ._output import echo

commands = typer.Typer()


@commands.command("evaluate-iou")
def evaluate_iou(
    predictions: Annotated[Path, typer.Argument(help="Folder written by nnUNetv2_predict --save_probabilities.")],
    labels: Annotated[Path, typer.Argument(help="Folder of reference segmentations of the same names.")],
    label: Annotated[int, typer.Option(help="Label to evaluate.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Print the mean IoU over probability thresholds 0.5 to 0.95, as in UNet-2022's Table 3."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluation import THRESHOLDS, evaluate_predictions

    summary = evaluate_predictions(predictions, labels, label)
    echo(f"label {label}, mean of {len(summary.per_case)} images")
    table = Table()
    table.add_column("threshold", justify="right")
    table.add_column("IoU, %", justify="right")
    for threshold, iou in zip(THRESHOLDS, summary.per_threshold, strict=True):
        table.add_row(f"{threshold:.2f}", f"{100 * iou:.2f}")
    table.add_section()
    table.add_row("mean", f"{100 * summary.mean_iou:.2f}")
    Console().print(table)
    if summary.empty:
        echo(f"{summary.empty} pairs of image and threshold left out: neither prediction nor label holds the label")
    if summary.without_prediction:
        echo(f"{len(summary.without_prediction)} label files have no prediction, {summary.without_prediction[0]} first")
    if output is not None:
        write_json(summary.as_json(), output)
        echo(f"written: {output}")


@commands.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained fold (.../fold_0) with its validation.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file; in the fold's folder by default.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Show these predictions (with nnUNetv2_evaluate_folder's summary.json).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; the dataset's imagesTr by default.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Folder of the reference segmentations; the dataset's own by default.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases to draw, from the worst to the best.")] = 3,
    trust: Trust = False,
) -> None:
    """Write one self-contained HTML file: overlays, loss and Dice curves, Dice per case and label."""
    from ..evaluation.report import write_report

    echo(write_report(folder, output, predictions, images, cases, labels, trust))
