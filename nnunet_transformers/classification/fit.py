"""``nnunet-transformers classify fit``: recipes of classification on the machinery of pretraining."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from ..runs import command_line as run
from ..runs.recipe import list_recipes as recipe_names
from ..runs.recipe import read_recipe


def list_recipes() -> list[str]:
    """Names of the recipes of classification."""
    return recipe_names(__package__)


class _CLI(run.RecipeCLI):
    """Checks images and encoder."""

    def check(self) -> None:
        data, description = self.datamodule, self.model.description
        data.views(description.patch_size, description.input_channels)
        prepared, wanted = data.index["normalization"], self.model.normalization
        if wanted and set(prepared) != set(wanted):
            print(
                f"note: the images were prepared with normalization {', '.join(prepared)}, those of the encoder with "
                f"{', '.join(wanted)}"
            )
        if self.config.fit.trainer.logger in (None, True):
            self.trainer.logger = CSVLogger(self.trainer.default_root_dir)


def fit(
    recipe: str,
    folder: Path,
    table: Path,
    encoder: Path | None = None,
    labels: Sequence[str] = ("label",),
    arguments: Sequence[str] = (),
) -> Trainer:
    """Train a classifier by a recipe.

    A run writes ``classifier.pth`` when its validation score is better than ever before, its state ``last.ckpt`` after
    every epoch, which ``--ckpt_path last`` continues, and its metrics as CSV.

    Args:
        recipe: name or file.
        folder: prepared images.
        table: CSV file of their labels.
        encoder: checkpoint to start from; random weights of the recipe's network without.
        labels: columns of labels.
        arguments: of LightningCLI, such as ``--trainer.max_epochs`` or ``--ckpt_path``; they count before all else.

    Returns:
        the trainer, with metrics and callbacks.

    Raises:
        ValueError: on an unknown recipe, a table that cannot be used, or settings that cannot work.
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
    defaults = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0}
    return run.run_recipe(read_recipe(recipe, __package__), _CLI, [*given, *arguments], defaults)
