"""The commands ``nnunet-transformers pretrain`` and ``probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PROBE_TRAINER = "nnUNetTrainerLinearProbe"

pretrain = typer.Typer(help="Encoder checkpoints from unlabelled images.", no_args_is_help=True)
probe = typer.Typer(help="How much a frozen encoder knows: classification and segmentation.", no_args_is_help=True)


@pretrain.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A dataset in nnU-Net's raw layout, or a folder of images.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    spacing: Annotated[str, typer.Option(help="mm per voxel, such as 1,1,1; the images' median by default.")] = "",
    patch_size: Annotated[str, typer.Option(help="About the crops that will be read.")] = "96,96,96",
    processes: Annotated[int, typer.Option("--processes", "-np", min=1, help="Images at a time.")] = 2,
    fold: Annotated[
        int | None, typer.Option("--fold", "-f", help="Leave out the cases that this fold validates on.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Prepare as for a plan of this.")] = None,
    plans: Annotated[str | None, typer.Option("--plans", "-p", help="That plan.")] = None,
    configuration: Annotated[str, typer.Option("--configuration", "-c", help="Of the plan.")] = "3d_fullres",
    normalization: Annotated[
        str | None, typer.Option(help="nnU-Net's, such as rescale_to_0_1, of a folder of images; zscore by default.")
    ] = None,
    like: Annotated[Path | None, typer.Option(help="Prepare as for this classifier's training.")] = None,
) -> None:
    """Resample, normalise and store images as nnU-Net does; labels are not needed."""
    from .pretraining import prepare_images

    plan = (dataset, plans, configuration)
    prepare_images(source, output, spacing, patch_size, processes, fold, plan, normalization, like)


@pretrain.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit(
    context: typer.Context,
    config: Annotated[str, typer.Option(help="Recipe, by name or file; see `pretrain recipes`.")],
    dataset: Annotated[str | None, typer.Option("--dataset", "-d", help="Take the network from its plan.")] = None,
    plans: Annotated[str | None, typer.Option("--plans", "-p", help="That plan.")] = None,
    configuration: Annotated[str, typer.Option("--configuration", "-c", help="Of the plan.")] = "3d_fullres",
) -> None:
    """Train an encoder by a recipe; other options override it, such as --trainer.max_epochs 50."""
    from .pretraining import fit_recipe

    fit_recipe(config, (dataset, plans, configuration), context.args)


@pretrain.command()
def recipes() -> None:
    """Print the recipes' names."""
    from ..pretraining.fit import list_recipes

    print("\n".join(list_recipes()))


@pretrain.command("show-matches")
def show_matches(
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare`.")],
    query: Annotated[str, typer.Argument(help="Name of an image in it.")],
    key: Annotated[str, typer.Argument(help="Name of another.")],
    output: Annotated[Path, typer.Argument(help="Picture to write.")],
    matcher: Annotated[str, typer.Option(help="identity, affine, embedding, hybrid or precomputed.")] = "affine",
    weights: Annotated[Path | None, typer.Option(help="Of the embedding, for embedding and hybrid.")] = None,
    landmarks: Annotated[Path | None, typer.Option(help="For precomputed.")] = None,
    points: Annotated[int, typer.Option(min=1, help="Rows of the picture.")] = 6,
) -> None:
    """Draw where a matcher finds random points of one image in another."""
    from .pretraining import draw

    draw(images, query, key, output, matcher, weights, landmarks, points)


@pretrain.command("show-attention")
def show_attention(
    alignment: Annotated[Path, typer.Argument(help="alignment.pth, written by MGCA beside its encoder.")],
    image: Annotated[Path, typer.Argument(help="2D image.")],
    report: Annotated[str, typer.Argument(help="Its report.")],
    output: Annotated[Path, typer.Argument(help="Picture to write.")],
    words: Annotated[int, typer.Option(min=1, help="Words to find in the image.")] = 6,
    text_encoder: Annotated[str | None, typer.Option(help="Folder or hub name, if it has moved since.")] = None,
) -> None:
    """Draw which patches and words have weight, and where in the image words are found."""
    from .pretraining import draw_attention_to

    draw_attention_to(alignment, image, report, output, words, text_encoder)


@probe.command()
def classify(
    encoder: Annotated[Path, typer.Argument(help="Encoder checkpoint.")],
    images: Annotated[Path, typer.Argument(help="Folder written by `pretrain prepare`.")],
    labels: Annotated[Path, typer.Argument(help="CSV with columns image, label and, if fixed, split (train or test).")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
) -> None:
    """Logistic regression and nearest neighbours on frozen features, at 1, 10 and 100 % of the training labels."""
    from .probe import probe_classification

    probe_classification(encoder, images, labels, output, device)


@probe.command()
def segment(
    encoder: Annotated[Path, typer.Argument(help="Encoder checkpoint.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan of one of this package's networks.")],
    configuration: Annotated[str, typer.Option("--configuration", "-c", help="Of the plan.")] = "3d_fullres",
    fold: Annotated[int, typer.Option("--fold", "-f", help="To train and validate on.")] = 0,
    trainer: Annotated[str, typer.Option("--trainer", "-tr", help="Or one with another schedule.")] = PROBE_TRAINER,
    device: Annotated[str, typer.Option("--device", "-device", help="cuda, cpu or mps, as for nnU-Net.")] = "cuda",
) -> None:
    """Train 1x1 heads on the frozen encoder with nnU-Net, and print the validation cases' Dice."""
    from .probe import probe_segmentation

    probe_segmentation(encoder, dataset, plans, configuration, fold, trainer, device)
