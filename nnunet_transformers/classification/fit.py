"""``nnunet-transformers classify fit``: LightningCLI with the classification recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer

from .._text import printable
from ..runs import command_line as run
from ..runs.recipe import list_recipes as recipe_names
from ..runs.recipe import read_recipe

# all validation images, and none before training
TRAINER_DEFAULTS = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}


def list_recipes() -> list[str]:
    """Return the names of the classification recipes."""
    return recipe_names(__package__)


class EncoderTrainingCLI(run.RecipeCLI):
    """LightningCLI that compares the images with those of the encoder."""

    from_method = {  # noqa: RUF012
        "patch_size": lambda method: method.description.patch_size,
        "input_channels": lambda method: method.description.input_channels,
    }

    def check(self) -> None:
        prepared, wanted = self.datamodule.index.normalization, self.model.normalization
        if wanted and set(prepared) != set(wanted):
            note = f"note: the images were prepared with normalization {', '.join(prepared)}"
            print(printable(f"{note}, the encoder's images with {', '.join(wanted)}"))


class ClassificationCLI(EncoderTrainingCLI):
    """LightningCLI of the classification recipes."""

    written = ("classifier.pth",)
    kind = "classification"


def fit(
    recipe: str,
    folder: Path,
    table: Path,
    encoder: Path | None = None,
    labels: Sequence[str] = ("label",),
    arguments: Sequence[str] = (),
    trust: bool = False,
    uncertain: str | None = None,
) -> Trainer:
    """Train a classifier by a recipe.

    A run writes ``classifier.pth`` whenever its validation score improves, its state ``last.ckpt`` after every epoch,
    which ``--ckpt_path last`` resumes, and its metrics as CSV.

    Args:
        recipe: name or file.
        folder: prepared images.
        table: CSV file of their labels.
        encoder: checkpoint to start from; by default random weights of the recipe's network.
        labels: label columns.
        arguments: LightningCLI's arguments, such as ``--trainer.max_epochs`` or ``--ckpt_path``; they override the
            recipe.
        trust: take a recipe that names any code, see ``read_recipe``.
        uncertain: what the label -1 becomes, see ``read_uncertain``.

    Returns:
        the trainer, with metrics and callbacks.

    Raises:
        ValueError: if the recipe is unknown, the table cannot be used, or settings contradict each other.
        FileNotFoundError: if the data were not prepared, or there is no such table or encoder.
        FileExistsError: if the folder of the run holds another one.
        RuntimeError: if training diverges.
    """
    given = [
        f"--data.init_args.folder={folder}",
        f"--data.init_args.table={table}",
        f"--data.init_args.labels={json.dumps(list(labels))}",
    ]
    if encoder is not None:
        given.append(f"--model.init_args.encoder={encoder}")
    if uncertain is not None:
        given.append(f"--data.init_args.uncertain={uncertain}")
    recipe_found = read_recipe(recipe, __package__, trust)
    return run.run_recipe(recipe_found, ClassificationCLI, [*given, *arguments], TRAINER_DEFAULTS)
