"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from ..plans.planned import PlannedConfiguration
from ..runs import command_line as run
from ..runs.callbacks import CollapseMonitor
from ..runs.recipe import Recipe, read_recipe
from ..runs.recipe import list_recipes as recipe_names
from .data.index import PreparedIndex
from .from_plan import model_arguments


def list_recipes() -> list[str]:
    """Return the names of the pretraining recipes."""
    return recipe_names(__package__)


def mask_grid(method: LightningModule) -> tuple[int, ...]:
    """Return the cells per axis that a method's encoder masks.

    Raises:
        ValueError: if the method has no masked encoder.
    """
    grid = getattr(getattr(method, "encoder", None), "grid", None)
    if grid is None:
        raise ValueError(f"the data draw masks for an encoder with a grid of cells; {type(method).__name__} has none")
    return tuple(grid)


class PretrainingCLI(run.RecipeCLI):
    """LightningCLI of the pretraining recipes; checks that images, network and plan fit together.

    Attributes:
        planned: plan that the network is taken from, if any.
    """

    from_method = {"grid": mask_grid}  # noqa: RUF012
    planned: PlannedConfiguration | None = None

    def check(self) -> None:
        index, model = self.datamodule.index, self.model
        wanted = model.hparams.get("input_channels", 1)
        if len(index.channels) != wanted:
            raise ValueError(f"the prepared images have {len(index.channels)} channels, the network takes {wanted}")
        if self.planned is not None:
            self._compare(index, self.planned.configuration)

    @staticmethod
    def _compare(index: PreparedIndex, configuration: ConfigurationManager) -> None:
        compared: tuple[tuple[str, Sequence[Any] | None, Sequence[Any]], ...] = (
            ("spacing", index.spacing, configuration.spacing),
            ("normalization", index.normalization, configuration.normalization_schemes),
        )
        for name, prepared, planned in compared:
            if prepared is not None and list(prepared)[-len(planned) :] != list(planned):
                print(
                    f"note: the images were prepared with {name} {list(prepared)}, the plan has {list(planned)}; "
                    "`pretrain prepare -d ... -p ...` prepares them as for training"
                )


def fit(recipe: str, arguments: Sequence[str], planned: PlannedConfiguration | None = None) -> Trainer:
    """Run a pretraining recipe.

    A run saves its state and its encoder after every epoch. ``--ckpt_path last`` resumes it; the resumed run draws the
    same crops and random numbers as an uninterrupted one.

    Args:
        recipe: name or file.
        arguments: LightningCLI's arguments, such as ``--data.init_args.folder``, ``--trainer.max_epochs`` or
            ``--ckpt_path``; they override recipe and plan.
        planned: plan that specifies the network, its arguments, patch and channels.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: if the recipe is unknown, or its settings contradict each other, the images or the plan.
        FileNotFoundError: if the data were not prepared.
        FileExistsError: if the folder holds another run.
        RuntimeError: if training diverges or collapses.

    Examples:
        >>> fit("qt_ssl_in_task", ["--data.init_args.folder=prepared", "--trainer.max_epochs=50"])
    """
    content = read_recipe(recipe, __package__)
    taken = {} if planned is None else model_arguments(planned, content.parameters("model"))
    network = [f"--model.init_args.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in taken.items()]
    defaults = {"callbacks": [CollapseMonitor()], "limit_val_batches": 0, "strategy": _strategy(content)}
    return run.run_recipe(
        content, type("CLI", (PretrainingCLI,), {"planned": planned}), [*network, *arguments], defaults
    )


def _strategy(recipe: Recipe) -> str:
    """Return the DDP strategy that the method asks for, if it trains only a part of the network per step."""
    several = torch.cuda.device_count() > 1
    return getattr(recipe.part("model"), "strategy", "auto") if several else "auto"
