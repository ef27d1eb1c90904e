"""The command ``nnunet-transformers classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

classify = typer.Typer(help="Classifiers of whole images, from an encoder or from nothing.", no_args_is_help=True)


@classify.command("fit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit_classifier(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare`.")],
    table: Annotated[
        Path, typer.Argument(help="CSV with columns image, label and, if fixed, split (train, val or test).")
    ],
    config: Annotated[str, typer.Option(help="Recipe, by name or file; see `classify recipes`.")],
    encoder: Annotated[
        Path | None,
        typer.Option(help="Encoder checkpoint to start from; random weights of the recipe's network without."),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Columns with the labels; several, such as a,b,c, hold 1, 0 or nothing where unknown.")
    ] = "label",
) -> None:
    """Train a classifier by a recipe; other options, after the table, override it, such as --trainer.max_epochs 50."""
    from .classification import fit_recipe

    fit_recipe(images, table, config, encoder, labels, context.args)


@classify.command("predict")
def predict_classes(
    classifier: Annotated[Path, typer.Argument(help="Written by `classify fit`.")],
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare --like CLASSIFIER`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV as for training, to print scores; of its split test if it has one.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON file to write the scores to.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Write each image's probabilities; with labels print AUC and accuracy with 95 % intervals."""
    from .classification import predict

    predict(classifier, images, output, labels, scores, device)


@classify.command("recipes")
def classification_recipes() -> None:
    """Print the recipes' names."""
    from ..classification.fit import list_recipes

    print("\n".join(list_recipes()))
