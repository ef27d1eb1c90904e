"""``nnunet-transformers pretrain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..pretraining.prepare import prepare
from .network_table import parse_patch_size


def prepare_images(source: Path, output: Path, spacing: str, patch_size: str, processes: int) -> None:
    """Prepare and print what was stored and what was not."""
    try:
        wanted = [float(s) for s in spacing.split(",")] if spacing else None
    except ValueError as error:
        raise ValueError(f"--spacing {spacing!r} is not a list of numbers such as 1,1,1") from error
    stored, skipped = prepare(source, output, wanted, parse_patch_size(patch_size), processes)
    for case in skipped:
        print(f"skipped {case.name}: {case.reason}")
    print(f"{output}: {len(stored)} images, {len(skipped)} skipped")


def fit_recipe(config: str, arguments: Sequence[str]) -> None:
    """Run a recipe with LightningCLI."""
    from ..pretraining.fit import fit

    fit(config, arguments)
