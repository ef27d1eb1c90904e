"""``nnunet-transformers pretrain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..pretraining.prepare import prepare, validation_cases
from .network_table import parse_patch_size


def prepare_images(source: Path, output: Path, spacing: str, patch_size: str, processes: int, fold: int | None) -> None:
    """Prepare and print what was stored and what was not."""
    try:
        wanted = [float(s) for s in spacing.split(",")] if spacing else None
    except ValueError as error:
        raise ValueError(f"--spacing {spacing!r} is not a list of numbers such as 1,1,1") from error
    left_out = () if fold is None else validation_cases(source, fold)
    stored, skipped = prepare(source, output, wanted, parse_patch_size(patch_size), processes, left_out)
    for case in skipped:
        print(f"skipped {case.name}: {case.reason}")
    print(f"{output}: {len(stored)} images, {len(skipped)} skipped, {len(left_out)} left out for validation")


def fit_recipe(
    config: str, dataset: str | None, plans: str | None, configuration: str, arguments: Sequence[str]
) -> None:
    """Run a recipe with LightningCLI."""
    from ..pretraining.fit import fit

    if (dataset is None) != (plans is None):
        raise ValueError("--dataset and --plans go together: the network is taken from that plan")
    fit(config, arguments, None if dataset is None or plans is None else (dataset, plans, configuration))
