"""LightningCLI for recipes, shared by pretraining and classification."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..cpu import optimize
from .callbacks import CheckpointWriter, SeedEveryBatch
from .recipe import Recipe


class RecipeCLI(LightningCLI, ABC):
    """LightningCLI that checks module, data and output folder before training.

    Attributes:
        shared: names of arguments of both module and data, given once, to the module.
        from_method: arguments of the data that are taken from the built module, and the functions that take them.
    """

    shared: Sequence[str] = ()
    from_method: Mapping[str, Callable[[Any], Any]] = {}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in self.shared:
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")
        for name, function in self.from_method.items():
            parser.link_arguments("model", f"data.init_args.{name}", function, apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if ``self.model`` cannot be trained on ``self.datamodule``."""

    def before_fit(self) -> None:
        self.check()
        if isinstance(self.trainer.accelerator, CPUAccelerator):
            optimize(self.model)
        # --ckpt_path last looks in dirpath, which by default is the folder of a logger version
        root = Path(self.trainer.default_root_dir)
        if isinstance(self.trainer.checkpoint_callback, ModelCheckpoint):
            self.trainer.checkpoint_callback.dirpath = str(root)
        if (root / "last.ckpt").exists() and not self.config.fit.ckpt_path:
            raise FileExistsError(
                f"{root} already holds a run: resume it with --ckpt_path last, or choose another folder with "
                "--trainer.default_root_dir"
            )


def run_recipe(
    recipe: Recipe, cli_class: type[RecipeCLI], arguments: Sequence[str], trainer_defaults: Mapping[str, Any]
) -> Trainer:
    """Train by a recipe.

    Args:
        recipe: result of ``read_recipe``.
        cli_class: command line with its checks.
        arguments: of LightningCLI; they take precedence over the recipe.
        trainer_defaults: arguments of the Trainer that recipe and arguments do not give; its callbacks are added to
            those of all runs.

    Returns:
        the Trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: on invalid settings.
        FileExistsError: if the folder holds another run.
    """
    taken = recipe.parameters("data")
    from_method = {name: function for name, function in cli_class.from_method.items() if name in taken}
    shared = [name for name in recipe.parameters("model") if name in taken and name not in from_method]
    callbacks = [
        ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False),
        SeedEveryBatch(),
        *trainer_defaults.get("callbacks", ()),
        CheckpointWriter(),
    ]
    try:
        cli = type("CLI", (cli_class,), {"shared": shared, "from_method": from_method})(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # the data draw their samples by epoch
                "reload_dataloaders_every_n_epochs": 1,
                **trainer_defaults,
                "callbacks": callbacks,
            },
            args=["fit", "--config", yaml.safe_dump(recipe.content), *arguments],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        # jsonargparse wraps errors of module and data into a long message on the types that it tried
        if str(error).startswith("Does not validate") and isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    return cli.trainer
