"""``nnunet-transformers detect fit``: LightningCLI with the detection recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer

from ..classification.fit import TRAINER_DEFAULTS, EncoderTrainingCLI
from ..runs import command_line as run
from ..runs.recipe import list_recipes as recipe_names
from ..runs.recipe import read_recipe


def list_recipes() -> list[str]:
    """Return the names of the detection recipes."""
    return recipe_names(__package__)


class DetectionCLI(EncoderTrainingCLI):
    """LightningCLI of the detection recipes."""

    written = ("detector.pth",)
    kind = "detection"


def fit(
    recipe: str,
    folder: Path,
    table: Path,
    encoder: Path | None = None,
    arguments: Sequence[str] = (),
    trust: bool = False,
) -> Trainer:
    """Train a detector by a recipe.

    A run writes ``detector.pth`` whenever its validation loss is the lowest so far, its state ``last.ckpt`` after every
    epoch, which ``--ckpt_path last`` resumes, and its metrics as CSV.

    Args:
        recipe: name or file.
        folder: prepared images.
        table: CSV or COCO file of their boxes.
        encoder: checkpoint to start from; by default random weights of the recipe's network.
        arguments: LightningCLI's arguments, such as ``--trainer.max_epochs`` or ``--ckpt_path``; they override the
            recipe.
        trust: take a recipe that names any code, see ``read_recipe``.

    Returns:
        the trainer, with metrics and callbacks.

    Raises:
        ValueError: if the recipe is unknown, the table cannot be used, or settings contradict each other.
        FileNotFoundError: if the data were not prepared, or there is no such table or encoder.
        FileExistsError: if the folder of the run holds another one.
        RuntimeError: if training diverges.
    """
    given = [f"--data.init_args.folder={folder}", f"--data.init_args.table={table}"]
    if encoder is not None:
        given.append(f"--model.init_args.encoder={encoder}")
    return run.run_recipe(read_recipe(recipe, __package__, trust), DetectionCLI, [*given, *arguments], TRAINER_DEFAULTS)
