"""Recipes run with LightningCLI: what pretraining and classification have in common."""

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
from .callbacks import EncoderWriter, SeedEveryBatch
from .recipe import Recipe


class RecipeCLI(LightningCLI, ABC):
    """LightningCLI that checks, before it trains, that method, data and folder go together.

    Attributes:
        shared: what method and data both take, said once, of the method.
        from_method: arguments of the data that are taken from the built method, and the functions that take them.
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
        # --ckpt_path last looks there; each run has a logger's folder of its own
        root = Path(self.trainer.default_root_dir)
        if self.trainer.checkpoint_callback is not None:
            self.trainer.checkpoint_callback.dirpath = str(root)
        if (root / "last.ckpt").exists() and not self.config.fit.ckpt_path:
            raise FileExistsError(
                f"{root} holds a run already: continue it with --ckpt_path last, or choose another folder with "
                "--trainer.default_root_dir"
            )


def run_recipe(
    recipe: Recipe, cli_class: type[RecipeCLI], arguments: Sequence[str], trainer_defaults: Mapping[str, Any]
) -> Trainer:
    """Run a recipe.

    Args:
        recipe: of ``read_recipe``.
        cli_class: what to check before.
        arguments: of LightningCLI; they count before the recipe.
        trainer_defaults: of the trainer, where recipe and arguments say nothing; callbacks besides those of all runs.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: on settings that cannot work.
        FileExistsError: if the folder holds another run.
    """
    taken = recipe.parameters("data")
    from_method = {name: function for name, function in cli_class.from_method.items() if name in taken}
    shared = [name for name in recipe.parameters("model") if name in taken and name not in from_method]
    callbacks = [
        ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False),
        SeedEveryBatch(),
        *trainer_defaults.get("callbacks", ()),
        EncoderWriter(),
    ]
    try:
        cli = type("CLI", (cli_class,), {"shared": shared, "from_method": from_method})(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                # a data loader of an epoch knows which epoch it is
                "reload_dataloaders_every_n_epochs": 1,
                **trainer_defaults,
                "callbacks": callbacks,
            },
            args=["fit", "--config", yaml.safe_dump(recipe.content), *arguments],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        # jsonargparse puts what method or data say into an essay on the types that it tried
        if str(error).startswith("Does not validate") and isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    return cli.trainer
