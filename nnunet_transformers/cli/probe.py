"""Group ``probe``: evaluation of a frozen encoder's features."""

from __future__ import annotations

import os
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from .._atomic import check_place, write_json
from ._options import Configuration, Dataset, EncoderFile, PreparedFolder, TorchDevice, Trust, chosen_device
from ._output import echo

PROBE_TRAINER = "nnUNetTrainerLinearProbe"

commands = typer.Typer(help="Linear probes of a frozen encoder: classification and segmentation.", no_args_is_help=True)


@commands.command()
def classify(
    encoder: EncoderFile,
    images: PreparedFolder,
    labels: Annotated[
        Path, typer.Argument(help="CSV with columns image, label and, for a fixed split, split (train or test).")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file to write.")] = None,
    device: TorchDevice = "auto",
) -> None:
    """Evaluate logistic regression and nearest neighbours on frozen features with 1, 10 and 100 % of the labels."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from ..classification.classifier import load_pretrained
    from ..classification.labels import read_labels
    from ..evaluation.classification_probe import probe_classification
    from ..evaluation.features import FrozenEncoder
    from ..pretraining.data import PreparedImages

    device = chosen_device(device)
    if output is not None:
        check_place(output)
    prepared = PreparedImages(images)
    labelled = read_labels(labels, prepared.names, files=prepared.files)
    split, is_test = labelled.split, labelled.is_test
    if split is not None and len(set(split == "test")) < 2:
        raise ValueError(f"column split of {labels} must hold test and train or val, and both, got {split[0]!r}")
    frozen = FrozenEncoder(load_pretrained(encoder), device)
    features = np.stack([frozen.features(prepared, name) for name in track(labelled.names, description="features")])
    scores = probe_classification(features, labelled.labels, is_test)
    how = "cross-validated" if is_test is None else f"{int(is_test.sum())} of them to test on"
    echo(f"{encoder}: {len(labelled.names)} images, {len(set(labelled.labels))} labels, {how}")
    columns = Table()
    for column in ("classifier", "labels", "cases", "AUC", "accuracy"):
        columns.add_column(column, justify="left" if column == "classifier" else "right")
    for s in scores:
        auc, accuracy = f"{s.auc:.3f} ± {s.auc_std:.3f}", f"{s.accuracy:.3f} ± {s.accuracy_std:.3f}"
        columns.add_row(s.classifier, f"{s.share:.0%}", f"{s.cases:.0f}", auc, accuracy)
    Console().print(columns)
    if labelled.unknown:
        echo(f"{len(labelled.unknown)} images of {labels} are not in {images}, {labelled.unknown[0]} first")
    if output is not None:
        write_json({"encoder": str(encoder), "scores": [asdict(s) for s in scores]}, output)
        echo(f"written: {output}")


@commands.command()
def segment(
    encoder: EncoderFile,
    dataset: Dataset,
    plans: Annotated[str, typer.Option("--plans", "-p", help="Plan of one of this package's networks.")],
    configuration: Configuration = "3d_fullres",
    fold: Annotated[int, typer.Option("--fold", "-f", help="Fold to train and validate on.")] = 0,
    trainer: Annotated[
        str, typer.Option("--trainer", "-tr", help="The probe's trainer, or one with another schedule.")
    ] = PROBE_TRAINER,
    device: TorchDevice = "auto",
    trust: Trust = False,
) -> None:
    """Train 1x1 heads on the frozen encoder with nnU-Net, and print the validation cases' Dice."""
    import random

    import numpy as np
    import torch
    from nnunetv2.run.run_training import run_training
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from .._plugins import stock_names
    from .._reading import read_json
    from ..discovery import find
    from ..plans.gate import check_plan
    from ..plans.plan_files import dataset_folder, load_plans
    from ..weights import InitialWeights
    from ..weights.attach import attach

    device = chosen_device(device)
    if find(trainer) is None and trainer not in stock_names():
        raise ValueError(f"unknown trainer {trainer!r}; the probe's is {PROBE_TRAINER}, or {PROBE_TRAINER}_5epochs")
    if not trust:
        # the training runs all of the plan, its preprocessing and export too
        check_plan(load_plans(dataset_folder(dataset), plans), f"the plan {plans}")
    weights = InitialWeights.from_source(encoder)

    def results(name: str) -> Path:
        return Path(get_output_folder(dataset, trainer, name, configuration, fold))

    # a plan for each encoder, and each run with it, keeps their results apart
    first = f"{plans}_probe_{weights.specification['sha256'][:8]}"
    names = chain([first], (f"{first}_{n}" for n in count(2)))
    probed = next(name for name in names if not results(name).exists())
    _, reports, _ = attach(weights, dataset, plans, probed, [configuration], force=True, trust=trust)
    echo(reports[configuration])
    # so that a run again gives the same figure: nnU-Net seeds neither itself nor the processes that augment
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    run_training(dataset, configuration, fold, trainer, probed, device=torch.device(device))
    folder = results(probed)
    summary = read_json(folder / "validation" / "summary.json")
    for label, scores in summary["mean"].items():
        echo(f"label {label}: Dice {scores['Dice']:.4f}")
    echo(f"mean: Dice {summary['foreground_mean']['Dice']:.4f} ({folder})")
