"""``nnunet-transformers classify``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .._atomic import write_json, write_text


def fit_recipe(
    images: Path, table: Path, config: str, encoder: Path | None, labels: str, arguments: Sequence[str]
) -> None:
    """Train with LightningCLI, and say what the best classifier is."""
    from ..classification.checkpoint import ClassifierCheckpoint
    from ..classification.fit import fit

    for path in (images, table):
        if str(path).startswith("--"):
            raise ValueError(f"the folder and the table come before other options, got {path} in their place")
    trainer = fit(config, images, table, encoder, [column.strip() for column in labels.split(",")], arguments)
    if trainer.is_global_zero:
        file = Path(trainer.default_root_dir) / "classifier.pth"
        scores = ClassifierCheckpoint.load(file).scores
        print(f"{file}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


def predict(
    classifier: Path, folder: Path, output: Path, labels: Path | None, scores_file: Path | None, device: str
) -> None:
    """Write probabilities as CSV; with labels print scores."""
    from ..classification.checkpoint import ClassifierCheckpoint
    from ..classification.labels import read_labels
    from ..classification.predict import Predictor, images_to_score
    from ..classification.scores import as_text, score_with_intervals
    from ..pretraining.data import PreparedImages

    if scores_file is not None and labels is None:
        raise ValueError("--scores needs --labels, the table to compare with")
    checkpoint, images = ClassifierCheckpoint.load(classifier), PreparedImages(folder)
    checkpoint.check_images(images.index, folder)
    if labels is not None:
        chosen, targets = images_to_score(checkpoint, read_labels(labels, images.names, checkpoint.columns))
    predictor = Predictor(checkpoint, device)
    found = {name: predictor.probabilities(images, name) for name in track(images.names, description="predicting")}
    _write_csv(found, checkpoint.classes, checkpoint.multi_label, output)
    print(f"written: {output}, {len(found)} images")
    if labels is None:
        return
    probabilities = np.stack([found[name] for name in chosen])
    scores = score_with_intervals(probabilities, targets, checkpoint.classes, checkpoint.multi_label)
    table = Table(title=f"{len(chosen)} images of {labels}, 95 % intervals")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, text in as_text(scores).items():
        table.add_row(name, text)
    Console().print(table)
    if scores_file is not None:
        content = {"classifier": str(classifier), "images": len(chosen)}
        write_json({**content, "scores": {name: asdict(s) for name, s in scores.items()}}, scores_file)
        print(f"written: {scores_file}")


def _write_csv(found: Mapping[str, NDArray], classes: Sequence[str], multi_label: bool, path: Path) -> None:
    """A row an image: its probabilities and, where it has one class, which is the likeliest."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *classes] + ["prediction"] * (not multi_label))
    for name, row in found.items():
        likeliest = [] if multi_label else [classes[int(row.argmax())]]
        writer.writerow([name, *(f"{p:.6f}" for p in row), *likeliest])
    write_text(text.getvalue(), path)
