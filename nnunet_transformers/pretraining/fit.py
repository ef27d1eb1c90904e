"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Trainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from ..plans.planned import PlannedConfiguration
from ..runs import command_line as run
from ..runs.callbacks import CollapseMonitor
from ..runs.recipe import Recipe, read_recipe
from ..runs.recipe import list_recipes as recipe_names
from .from_plan import model_arguments


def list_recipes() -> list[str]:
    """Names of the recipes of pretraining."""
    return recipe_names(__package__)


class _CLI(run.RecipeCLI):
    """Checks plan and images."""

    planned: PlannedConfiguration | None = None

    def check(self) -> None:
        index, model = self.datamodule.index, self.model
        wanted = model.hparams.get("input_channels", 1)
        if len(index["channels"]) != wanted:
            raise ValueError(f"the prepared images have {len(index['channels'])} channels, the network takes {wanted}")
        if self.planned is not None:
            self._compare(index, self.planned.configuration)

    @staticmethod
    def _compare(index: dict[str, Any], configuration: ConfigurationManager) -> None:
        for name, prepared, planned in (
            ("spacing", index["spacing"], configuration.spacing),
            ("normalization", index["normalization"], configuration.normalization_schemes),
        ):
            if prepared is not None and list(prepared)[-len(planned) :] != list(planned):
                print(
                    f"note: the images were prepared with {name} {list(prepared)}, the plan has {list(planned)}; with "
                    "`pretrain prepare -d ... -p ...` they look as they will in training"
                )


def fit(recipe: str, arguments: Sequence[str], planned: PlannedConfiguration | None = None) -> Trainer:
    """Run a recipe.

    A run saves its state after every epoch and its encoder beside it; ``--ckpt_path last`` continues it with the same
    crops and random numbers that it would have had.

    Args:
        recipe: name or file.
        arguments: of LightningCLI, such as ``--data.init_args.folder``, ``--trainer.max_epochs`` or ``--ckpt_path``;
            they count before everything else.
        planned: plan to take the network, its arguments, patch and channels from.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: on an unknown recipe, or settings that cannot work.
        FileNotFoundError: if the data were not prepared.
        FileExistsError: if the folder holds another run.
        RuntimeError: if training collapses.
    """
    content = read_recipe(recipe, __package__)
    taken = {} if planned is None else model_arguments(planned, content.parameters("model"))
    network = [f"--model.init_args.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in taken.items()]
    defaults = {"callbacks": [CollapseMonitor()], "limit_val_batches": 0, "strategy": _strategy(content)}
    return run.run_recipe(content, type("CLI", (_CLI,), {"planned": planned}), [*network, *arguments], defaults)


def _strategy(recipe: Recipe) -> str:
    """Where a step trains a part of the network only, DDP has to be told."""
    several = torch.cuda.device_count() > 1
    return getattr(recipe.part("model"), "strategy", "auto") if several else "auto"
