"""Recipes run with LightningCLI: what pretraining and classification have in common."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from .callbacks import EncoderWriter, SeedEveryBatch


def list_recipes(package: str) -> list[str]:
    """Names of the recipes in a package's folder ``recipes``."""
    return sorted(p.name.removesuffix(".yaml") for p in files(package).joinpath("recipes").iterdir())


def recipe_path(name: str, package: str) -> Path:
    """The file of a recipe, given by its name or as a file of one's own.

    Args:
        name: of the recipe, or a file.
        package: that has the recipe.

    Raises:
        ValueError: if it is neither; names the closest recipes.
    """
    if Path(name).is_file():
        return Path(name)
    known = list_recipes(package)
    if name not in known:
        close = get_close_matches(name, known, n=2) or known
        raise ValueError(f"no recipe and no file {name!r}; there are {', '.join(close)}")
    with as_file(files(package).joinpath("recipes", f"{name}.yaml")) as path:
        return path


def recipe_class(recipe: Path, part: str) -> type:
    """A recipe's method ("model") or its data.

    Raises:
        ValueError: if it names none.
    """
    content = yaml.safe_load(recipe.read_text()) or {}
    try:
        module, _, name = content[part]["class_path"].rpartition(".")
        return getattr(import_module(module), name)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{recipe} names no class in {part}.class_path ({error!r})") from error


def parameters(recipe: Path, part: str) -> list[str]:
    """Names of what a recipe's method or data take."""
    return list(inspect.signature(recipe_class(recipe, part)).parameters)


class RecipeCLI(LightningCLI, ABC):
    """LightningCLI that checks, before it trains, that method, data and folder go together.

    Attributes:
        shared: what method and data both take, said once, of the method.
    """

    shared: Sequence[str] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in self.shared:
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if ``self.model`` cannot be trained on ``self.datamodule``."""

    def before_fit(self) -> None:
        self.check()
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
    recipe: Path, cli_class: type[RecipeCLI], arguments: Sequence[str], trainer_defaults: Mapping[str, Any]
) -> Trainer:
    """Run a recipe.

    Args:
        recipe: its file.
        cli_class: what to check before.
        arguments: of LightningCLI; they count before the recipe.
        trainer_defaults: of the trainer, where recipe and arguments say nothing; callbacks besides those of all runs.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: on settings that cannot work.
        FileExistsError: if the folder holds another run.
    """
    shared = [name for name in parameters(recipe, "model") if name in parameters(recipe, "data")]
    callbacks = [
        ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False),
        SeedEveryBatch(),
        *trainer_defaults.get("callbacks", ()),
        EncoderWriter(),
    ]
    try:
        cli = type("CLI", (cli_class,), {"shared": shared})(
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
            args=["fit", "--config", str(recipe), *arguments],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        # jsonargparse puts what method or data say into an essay on the types that it tried
        if str(error).startswith("Does not validate") and isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    return cli.trainer
