"""Command ``calibrate``: a temperature for a trained model's probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._output import echo

commands = typer.Typer()


@commands.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="Folder of a trained model, whose folds were validated with --npz.")],
    labels: Annotated[Path, typer.Argument(help="Folder of the reference segmentations, such as labelsTr.")],
) -> None:
    """Fit a temperature on the validation cases of all folds, and store it for `predict --calibrated`."""
    from ..evaluation.calibration import FILE
    from ..evaluation.calibration import calibrate as run

    found = run(model, labels)
    echo(f"temperature {found.temperature:.3f}, from {found.voxels} voxels of {found.cases} cases")
    echo(f"expected calibration error {found.ece_before:.4f} before, {found.ece:.4f} after, on cases not fitted on")
    echo(f"negative log-likelihood    {found.nll_before:.4f} before, {found.nll:.4f} after")
    echo(f"written: {model / FILE}")
