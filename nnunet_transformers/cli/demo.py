"""Command ``demo``: the whole way from images to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Working folder; a second run reuses it.")] = Path("demo_output"),
    data: Annotated[
        Path | None,
        typer.Option(
            help="Dataset in nnU-Net's raw layout (a folder such as Dataset004_Hippocampus); made by default."
        ),
    ] = None,
    planner: Annotated[str, typer.Option(help="Planner to use.")] = "nnUNetPlannerQTUNetT",
    trainer: Annotated[str, typer.Option(help="Trainer to use.")] = "nnUNetTrainerQTUNetDemo",
) -> None:
    """Plan, preprocess, train, predict and evaluate with nnU-Net's own commands, then write a report."""
    from ..demo import run_demo

    run_demo(folder, data, planner, trainer)
