"""Group ``classify``: train classifiers of whole images and predict with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._atomic import check_place, write_json, write_text
from .._text import printable
from ._options import PreparedFolder, TorchDevice, Trust, chosen_device
from ._output import echo
from ._recipes import RecipeName, describe_recipes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..classification.checkpoint import ClassifierCheckpoint

commands = typer.Typer(help="Classifiers of whole images, pretrained or from scratch.", no_args_is_help=True)


@commands.command("fit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit_classifier(
    context: typer.Context,
    images: PreparedFolder,
    table: Annotated[
        Path, typer.Argument(help="CSV with columns image, label and, for a fixed split, split (train, val or test).")
    ],
    config: Annotated[str, typer.Option(help="Recipe, by name or file; see `classify recipes`.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Encoder checkpoint to start from; by default the recipe's network starts from scratch."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Label columns; several, such as a,b,c, hold 1, 0, or nothing if unknown.")
    ] = "label",
    uncertain: Annotated[
        str | None, typer.Option(help="What the label -1 becomes: zeros, ones, ignore, or a JSON file for each column.")
    ] = None,
    trust: Trust = False,
) -> None:
    """Train a classifier by a recipe; other options, after the table, override it, such as --epochs 50."""
    from ..classification.checkpoint import ClassifierCheckpoint
    from ..classification.fit import fit

    for path in (images, table):
        if str(path).startswith("--"):
            raise ValueError(f"the folder and the table come before other options, got {path} instead")
    columns = [column.strip() for column in labels.split(",")]
    trainer = fit(config, images, table, encoder, columns, context.args, trust, uncertain)
    if trainer.is_global_zero:
        file = Path(trainer.default_root_dir) / "classifier.pth"
        scores = ClassifierCheckpoint.load(file).scores
        echo(f"{file}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))


@commands.command("predict")
def predict_classes(
    classifier: Annotated[Path, typer.Argument(help="Checkpoint written by `classify fit`.")],
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare --like CLASSIFIER`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV as for training, to print scores; on its test split if it has one.")
    ] = None,
    uncertain: Annotated[
        str | None, typer.Option(help="What the label -1 becomes, as for training, whose choice is the default.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON file to write the scores to.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability above which sensitivity and specificity count a class.")
    ] = 0.5,
    device: TorchDevice = "auto",
) -> None:
    """Write each image's probabilities; with labels print AUC, accuracy, calibration and others with 95 % intervals.

    Images that the classifier was trained on are left out of the scores.
    """
    from rich.progress import track

    from ..classification.checkpoint import ClassifierCheckpoint
    from ..classification.labels import read_labels, read_uncertain
    from ..classification.predict import Predictor, images_to_score
    from ..pretraining.data import PreparedImages

    device = chosen_device(device)
    if scores is not None and labels is None:
        raise ValueError("--scores needs --labels, the table to compare with")
    for path in filter(None, (output, scores)):
        check_place(path)
    checkpoint, prepared = ClassifierCheckpoint.load(classifier), PreparedImages(images)
    checkpoint.check_images(prepared.index, images)
    # read before the prediction, so that a wrong table fails early
    labelled = None
    if labels is not None:
        chosen = read_uncertain(uncertain, checkpoint.columns) or checkpoint.uncertain
        table = read_labels(labels, prepared.names, checkpoint.columns, prepared.files, chosen)
        labelled = images_to_score(checkpoint, table)
    predictor, names = Predictor(checkpoint, device), prepared.names
    predictions = {name: predictor.probabilities(prepared, name) for name in track(names, description="predicting")}
    _write_csv(predictions, checkpoint, output)
    echo(f"written: {output}, {len(predictions)} images")
    if labelled is not None:
        scored, targets, notes = labelled
        for note in notes:
            echo(f"note: {note}")
        title, probabilities = f"{len(scored)} images of {labels}", [predictions[name] for name in scored]
        values = _print_scores(title, checkpoint, probabilities, targets, threshold)
        if scores is not None:
            write_json({"classifier": str(classifier), "images": len(scored), "scores": values}, scores)
            echo(f"written: {scores}")


@commands.command("recipes")
def classification_recipes(name: RecipeName = None) -> None:
    """Print the recipes with what they are for, or all settings of one."""
    echo(describe_recipes("nnunet_transformers.classification", name))


def _print_scores(
    title: str,
    checkpoint: ClassifierCheckpoint,
    probabilities: list[NDArray[Any]],
    targets: NDArray[Any],
    threshold: float,
) -> dict[str, dict[str, float | None]]:
    """Print a table of the scores with their intervals; return them in plain types."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..classification.scores import as_text, score_with_intervals

    scores = score_with_intervals(
        np.stack(probabilities), targets, checkpoint.classes, checkpoint.multi_label, threshold=threshold
    )
    # texts, in which rich obeys no markup
    table = Table(title=Text(printable(f"{title}, 95 % intervals")))
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, text in as_text(scores).items():
        table.add_row(Text(printable(name)), text)
    Console().print(table)
    return {name: asdict(score) for name, score in scores.items()}


def _write_csv(predictions: Mapping[str, NDArray[Any]], checkpoint: ClassifierCheckpoint, path: Path) -> None:
    """Write one row per image: its probabilities and, for exclusive classes, the most probable class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *checkpoint.classes] + ["prediction"] * (not checkpoint.multi_label))
    for name, probabilities in predictions.items():
        prediction = [] if checkpoint.multi_label else [checkpoint.classes[int(probabilities.argmax())]]
        writer.writerow([name, *(f"{p:.6f}" for p in probabilities), *prediction])
    write_text(text.getvalue(), path)
