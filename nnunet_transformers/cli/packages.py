"""What ``nnunet-transformers package`` and ``export-stock`` do and print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from ..sharing import (
    CaseResult,
    Options,
    estimate,
    export_stock,
    load_package,
    make_package,
    package_zip,
    predict_folder,
    select_device,
    verify,
)


def make_and_explain(models: Sequence[str], archive: Path | None, output: Path, options: tuple) -> None:
    """Make a package and say how its checkpoints were read."""
    chosen = Options(*options)
    if archive is None and not models:
        raise ValueError("name a folder of results, .../TRAINER__PLANS__CONFIGURATION, or a zip with --from-zip")
    if archive is None:
        made = make_package([Path(model) for model in models], output, chosen)
    else:
        made = package_zip(archive, models, output, chosen)
    for model in made.description.models:
        stages = f", after {model.previous.configuration}" if model.previous else ""
        print(f"{model.folder}: folds {', '.join(model.folds)}{stages}")
    if made.unpickled:
        print(f"unpickled, as --trust allows: {', '.join(made.unpickled)}")
    else:
        print("checkpoints were read as tensors and plain types; nothing was unpickled")
    print(f"written: {output}, {len(made.manifest.entries)} files, {made.manifest.bytes / 1e6:.1f} MB")
    print(f"SHA-256 of manifest.json, to publish beside it: {made.manifest.sha256}")


def verify_and_explain(folder: Path, sha256: str | None) -> None:
    """Print what a package holds once it is checked."""
    manifest = verify(folder, sha256)
    checked = "as stated" if sha256 else "compare it with its source's, or give it with --sha256"
    print(f"{folder}: {len(manifest.entries)} files, {manifest.bytes / 1e6:.1f} MB, none changed, missing or added")
    print(f"SHA-256 of manifest.json: {manifest.sha256} ({checked})")


def predict_and_explain(
    folder: Path, images: Path, output: Path, save_probabilities: bool, device: str, arguments: tuple
) -> int:
    """Predict, print a line for each case and a summary of those that were not.

    Returns:
        exit code: 1 if a case could not be predicted, else 0.
    """
    models = load_package(folder, select_device(device), *arguments)
    results = predict_folder(models, images, output, save_probabilities, _print_case)
    failed = [result for result in results if result.problem]
    print(f"{len(results) - len(failed)} segmented, {len(failed)} not; {output}")
    for result in failed:
        typer.secho(f"error: {result.name}: {result.problem}", fg=typer.colors.RED, err=True)
    return int(bool(failed))


def _print_case(result: CaseResult) -> None:
    for remark in result.remarks:
        typer.secho(f"{result.name}: {remark}", fg=typer.colors.YELLOW)
    print(f"{result.name}: {'not segmented' if result.problem else f'{result.seconds:.1f} s'}", flush=True)


def print_estimate(folder: Path, size: str, spacing: str | None, device: str, arguments: tuple) -> None:
    """Print time and memory for an image of ``size``."""
    try:
        shape = [int(n) for n in size.split(",")]
        wanted = None if spacing is None else [float(s) for s in spacing.split(",")]
    except ValueError as error:
        raise ValueError("--size and --spacing are three numbers such as 128,256,256") from error
    print(estimate(load_package(folder, select_device(device), *arguments), shape, wanted))


def export_and_explain(model: Path, output: Path, folds: Sequence[str], checkpoint: str, trust: bool) -> None:
    """Write the stock copy and say what it needs."""
    target, network = export_stock(model, output, folds, checkpoint, trust)
    print(f"written: {target}; nnUNetv2_predict_from_modelfolder -m {target} needs {network} and no trainer of ours")
