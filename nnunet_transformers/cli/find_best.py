"""Command ``find-best``: the best of trained models of any families, and of their ensembles."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import Dataset
from ._output import echo, echo_table

commands = typer.Typer()


@commands.command("find-best")
def find_best(
    dataset: Dataset,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="TRAINER__PLANS__CONFIGURATION, or a pattern such as '*__3d_fullres', may be given again; by default "
            "all that is trained.",
        ),
    ] = None,
    folds: Annotated[str, typer.Option(help="Folds that the models have.")] = "0,1,2,3,4",
    ensembles: Annotated[bool, typer.Option(help="Try ensembles of two.")] = True,
    processes: Annotated[
        int | None, typer.Option("--processes", "-np", min=1, help="Cases at a time; nnU-Net's number by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Merge and ensemble again what an earlier call has written.")] = True,
) -> None:
    """Compare trained models of any trainers and plans, as nnUNetv2_find_best_configuration, and print how to predict.

    The best is that of the highest mean foreground Dice over the validation cases of all folds.
    """
    from nnunetv2.configuration import default_num_processes

    from ..evaluation.best import find_best as find
    from ..plans.plan_files import dataset_folder

    numbers = _parse_folds(folds)
    name = dataset_folder(dataset).name
    choice = find(name, models or (), numbers, ensembles, processes or default_num_processes, overwrite)
    for note in choice.notes:
        echo(f"note: {note}")
    rows = [[label, f"{score:.4f}"] for label, score in choice.scores.items()]
    echo_table(f"{name}, folds {folds}", ["model or ensemble", "Dice"], rows)
    echo(f"best: {next(iter(choice.scores))}, Dice {choice.postprocessed:.4f} with postprocessing")
    echo("\n".join(choice.commands()))


def _parse_folds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--folds {text!r} is not a list of numbers such as 0,1,2") from error
