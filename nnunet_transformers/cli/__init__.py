"""The command ``nnunet-transformers``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .package_commands import Checkpoint, Folds, FoldsCommand, Trust, package

PROBE_TRAINER = "nnUNetTrainerLinearProbe"

app = typer.Typer(
    help="Transformer U-Nets for nnU-Net v2: checks, tables, released weights, reports and a demo. Training and "
    "prediction are nnU-Net's own commands.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

pretrain = typer.Typer(help="Encoder checkpoints from unlabelled images.", no_args_is_help=True)
app.add_typer(pretrain, name="pretrain")
probe = typer.Typer(help="How much a frozen encoder knows: classification and segmentation.", no_args_is_help=True)
app.add_typer(probe, name="probe")
classification = typer.Typer(help="Classifiers of whole images, from an encoder or from nothing.", no_args_is_help=True)
app.add_typer(classification, name="classify")
app.add_typer(package, name="package")


@app.command()
def doctor() -> None:
    """Check versions, discovery, folders and device; say what is wrong and how to mend it."""
    from .checks import run_checks

    raise typer.Exit(run_checks())


@app.command()
def models(
    patch_size: Annotated[str, typer.Option(help="Voxels per axis, two or three of them.")] = "96,96,96",
    input_channels: Annotated[int, typer.Option(min=1)] = 1,
    num_classes: Annotated[int, typer.Option(min=2)] = 14,
    name: Annotated[str, typer.Option(help="Show networks whose name contains this.")] = "",
) -> None:
    """Table of the networks: parameters, multiply-adds and training memory at a patch size."""
    from .network_table import print_models

    print_models(patch_size, input_channels, num_classes, name)


@app.command("trainers-path")
def trainers_path() -> None:
    """Print the folder for nnUNet_extTrainer, for installs where the hook is switched off."""
    print(Path(__file__).parent.parent / "ext_trainers")


@app.command()
def convert(
    family: Annotated[str, typer.Argument(help="The release: qt_unet, unet2022 or mit.")],
    released: Annotated[Path, typer.Argument(help="Checkpoint with the release's names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write.")],
    patch_size: Annotated[
        str | None, typer.Option(help="The size they were trained at, where weights depend on it (mit).")
    ] = None,
) -> None:
    """Translate a paper's released weights; nothing is unpickled."""
    from .conversion import convert_checkpoint

    convert_checkpoint(family, released, output, patch_size)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="The preset, or with --list a part of names.")] = "",
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")] = "",
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Name of the new plan; PLANS_PRESET by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a preset's plan of that name.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Table of the presets.")] = False,
) -> None:
    """Write a paper's experiment (patch, spacing, batch, windows) into a dataset's plan."""
    from .presets import apply_and_explain, list_presets

    if show:
        list_presets(name)
    elif name and dataset:
        apply_and_explain(name, dataset, output, force)
    else:
        raise ValueError("say which preset for which dataset: `preset NAME -d DATASET`; `preset --list` has the names")


@app.command()
def attach(
    checkpoint: Annotated[Path, typer.Argument(help="Encoder checkpoint, made by pretraining.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to start from.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the new plan.")],
    configuration: Annotated[
        list[str] | None, typer.Option("--configuration", "-c", help="Configurations; by default those that fit.")
    ] = None,
    min_coverage: Annotated[float, typer.Option(min=0, max=1, help="Least share of the encoder to be loaded.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan of that name written before.")] = False,
) -> None:
    """Write a plan whose networks start from a pretrained encoder; print what is loaded, what is not and why."""
    from .attachment import attach_encoder

    attach_encoder(checkpoint, dataset, plans, output, configuration or (), min_coverage, force)


@app.command("export-full")
def export_full(
    checkpoint: Annotated[Path, typer.Argument(help="Encoder checkpoint, made by pretraining.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to train with.")],
    configuration: Annotated[str, typer.Option("--configuration", "-c", help="Of the plan.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    trainer: Annotated[str, typer.Option("--trainer", "-tr", help="Whose network it is for.")] = "nnUNetTrainer",
) -> None:
    """Write weights for nnUNetv2_train -pretrained_weights, with any trainer: its network, the encoder loaded."""
    from .attachment import export_encoder

    export_encoder(checkpoint, dataset, plans, configuration, output, trainer)


@app.command("attach-imagenet")
def attach_imagenet(
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="nnU-Net's number or name of the dataset.")],
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan to start from, of UNet-2022.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the new plan.")],
    configuration: Annotated[
        list[str] | None, typer.Option("--configuration", "-c", help="Configurations; by default those that fit.")
    ] = None,
    convnext: Annotated[str, typer.Option(help="'hub' for timm's download, or a file.")] = "hub",
    swin: Annotated[str | None, typer.Option(help="The same for the attention half; left out by default.")] = None,
    spread: Annotated[bool, typer.Option("--spread", help="Take blocks from all over a stage, not the first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan of that name written before.")] = False,
) -> None:
    """Write a plan whose UNet-2022 starts from ImageNet weights; print what is loaded, what is not and why."""
    from .attachment import attach_imagenet as run

    run(dataset, plans, output, configuration or (), convnext, swin, spread, force)


@app.command("export-stock", cls=FoldsCommand)
def export_stock(
    model: Annotated[Path, typer.Argument(help="Folder of results, .../TRAINER__PLANS__CONFIGURATION.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write nnUNetTrainer__... to.")],
    folds: Folds = None,
    checkpoint: Checkpoint = "checkpoint_final.pth",
    trust: Trust = False,
) -> None:
    """Copy a trained model under nnU-Net's own trainer's name, so that predicting needs the network class alone."""
    from .packages import export_and_explain

    export_and_explain(model, output, folds or (), checkpoint, trust)


@app.command("evaluate-iou")
def evaluate_iou(
    predictions: Annotated[Path, typer.Argument(help="Made by nnUNetv2_predict --save_probabilities.")],
    labels: Annotated[Path, typer.Argument(help="Segmentations of the same names.")],
    label: Annotated[int, typer.Option(help="The label to evaluate.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
) -> None:
    """Mean IoU over probability thresholds 0.5 to 0.95, as in UNet-2022's Table 3."""
    from .evaluation import evaluate_folder

    evaluate_folder(predictions, labels, label, output)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A trained fold (.../fold_0), its validation done.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; fold folder by default.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Show these predictions (with nnUNetv2_evaluate_folder's summary.json).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; the dataset's imagesTr by default.")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Cases to draw, from the worst to the best.")] = 3,
) -> None:
    """One self-contained HTML file: overlays, loss and Dice curves, Dice per case and label."""
    from ..report import write_report

    print(write_report(folder, output, predictions, images, cases))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to work; reused by a second run.")] = Path("demo_output"),
    data: Annotated[
        Path | None,
        typer.Option(
            help="A dataset in nnU-Net's raw layout (a folder such as Dataset004_Hippocampus); made if not given."
        ),
    ] = None,
    planner: Annotated[str, typer.Option(help="Planner to use.")] = "nnUNetPlannerQTUNetT",
    trainer: Annotated[str, typer.Option(help="Trainer to use.")] = "nnUNetTrainerQTUNetDemo",
) -> None:
    """Plan, preprocess, train, predict and evaluate with nnU-Net's own commands, then write a report."""
    from ..demo import run_demo

    run_demo(folder, data, planner, trainer)


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


@classification.command("fit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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


@classification.command("predict")
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


@classification.command("recipes")
def classification_recipes() -> None:
    """Print the recipes' names."""
    from ..classification.fit import list_recipes

    print("\n".join(list_recipes()))


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 1, never a traceback."""
    try:
        app()
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
