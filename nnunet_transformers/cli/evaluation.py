"""``nnunet-transformers evaluate-iou``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from .._atomic import write_json
from ..evaluation import THRESHOLDS, evaluate_predictions


def evaluate_folder(predictions: Path, labels: Path, label: int, output: Path | None) -> None:
    """Print IoU per threshold and its mean; write them to ``output`` if given."""
    summary = evaluate_predictions(predictions, labels, label)
    print(f"label {label}, mean of {len(summary.per_case)} images")
    table = Table()
    table.add_column("threshold", justify="right")
    table.add_column("IoU, %", justify="right")
    for threshold, iou in zip(THRESHOLDS, summary.per_threshold, strict=True):
        table.add_row(f"{threshold:.2f}", f"{100 * iou:.2f}")
    table.add_section()
    table.add_row("mean", f"{100 * summary.mean_iou:.2f}")
    Console().print(table)
    if summary.empty:
        print(f"{summary.empty} pairs of image and threshold left out: neither prediction nor label holds the label")
    if summary.without_prediction:
        print(
            f"{len(summary.without_prediction)} label files have no prediction, {summary.without_prediction[0]} first"
        )
    if output is not None:
        write_json(summary.as_json(), output)
        print(f"written: {output}")
