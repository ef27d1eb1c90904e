"""``nnunet-transformers probe``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .._atomic import write_json
from ..weights import InitialWeights


def probe_classification(encoder: Path, prepared: Path, labels: Path, output: Path | None, device: str) -> None:
    """Print the scores of both classifiers; write them to ``output`` if given."""
    from ..classification.classifier import load_pretrained
    from ..classification.labels import read_labels
    from ..evaluation.classification_probe import probe_classification
    from ..evaluation.features import FrozenEncoder
    from ..pretraining.data import PreparedImages

    images = PreparedImages(prepared)
    table = read_labels(labels, images.names)
    if table.is_test is not None and (table.is_test.all() or not table.is_test.any()):
        raise ValueError(f"column split of {labels} must hold test and train or val, and both, got {table.split[0]!r}")
    frozen = FrozenEncoder(load_pretrained(encoder), device)
    features = np.stack([frozen.features(images, name) for name in track(table.names, description="features")])
    scores = probe_classification(features, table.labels, table.is_test)
    how = "cross-validated" if table.is_test is None else f"{int(table.is_test.sum())} of them to test on"
    print(f"{encoder}: {len(table.names)} images, {len(set(table.labels))} labels, {how}")
    columns = Table()
    for column in ("classifier", "labels", "cases", "AUC", "accuracy"):
        columns.add_column(column, justify="left" if column == "classifier" else "right")
    for s in scores:
        auc, accuracy = f"{s.auc:.3f} ± {s.auc_std:.3f}", f"{s.accuracy:.3f} ± {s.accuracy_std:.3f}"
        columns.add_row(s.classifier, f"{s.share:.0%}", f"{s.cases:.0f}", auc, accuracy)
    Console().print(columns)
    if table.unknown:
        print(f"{len(table.unknown)} images of {labels} are not in {prepared}, {table.unknown[0]} first")
    if output is not None:
        write_json({"encoder": str(encoder), "scores": [asdict(s) for s in scores]}, output)
        print(f"written: {output}")


def probe_segmentation(
    encoder: Path, dataset: str, plans: str, configuration: str, fold: int, trainer: str, device: str
) -> None:
    """Attach the encoder to a plan of the probe's own, train the heads with nnU-Net and print Dice."""
    import torch
    from nnunetv2.run.run_training import run_training
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from ..weights.attach import attach

    weights = InitialWeights.from_file(encoder)
    # a plan for each encoder, so that results of two of them stand side by side
    probed = f"{plans}_probe_{weights.specification['sha256'][:8]}"
    _, reports, _ = attach(weights, dataset, plans, probed, [configuration], force=True)
    print(reports[configuration])
    run_training(dataset, configuration, fold, trainer, probed, device=torch.device(device))
    folder = Path(get_output_folder(dataset, trainer, probed, configuration, fold))
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    for label, scores in summary["mean"].items():
        print(f"label {label}: Dice {scores['Dice']:.4f}")
    print(f"mean: Dice {summary['foreground_mean']['Dice']:.4f} ({folder})")
