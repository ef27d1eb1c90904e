"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .callbacks import CollapseMonitor, EncoderWriter, SeedEveryBatch
from .from_plan import model_arguments


def list_recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in files(__package__).joinpath("recipes").iterdir())


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by its name or as a file of one's own.

    Raises:
        ValueError: if it is neither; names the closest recipes.
    """
    if Path(name).is_file():
        return Path(name)
    known = list_recipes()
    if name not in known:
        close = get_close_matches(name, known, n=2) or known
        raise ValueError(f"no recipe and no file {name!r}; there are {', '.join(close)}")
    with as_file(files(__package__).joinpath("recipes", f"{name}.yaml")) as path:
        return path


class _CLI(LightningCLI):
    shared: Sequence[str] = ()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in self.shared:
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")

    def before_fit(self) -> None:
        # --ckpt_path last looks there; each run has a logger's folder of its own
        self.trainer.checkpoint_callback.dirpath = self.trainer.default_root_dir


def _parameters(recipe: Path, part: str) -> list[str]:
    """Names of what a recipe's method ("model") or its data take."""
    content = yaml.safe_load(recipe.read_text()) or {}
    try:
        module, _, name = content[part]["class_path"].rpartition(".")
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{recipe} names no class in {part}.class_path ({error!r})") from error


def fit(recipe: str, arguments: Sequence[str], plan: tuple[str, str, str] | None = None) -> Trainer:
    """Run a recipe.

    A run saves its state after every epoch and its encoder beside it; ``--ckpt_path last`` continues it with the same
    crops and random numbers that it would have had.

    Args:
        recipe: name or file.
        arguments: of LightningCLI, such as ``--data.init_args.folder``, ``--trainer.max_epochs`` or ``--ckpt_path``;
            they count before everything else.
        plan: dataset, plan and configuration to take the network, its arguments, patch and channels from.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: on an unknown recipe, or settings that cannot work.
        FileNotFoundError: if there is no such plan, or the data were not prepared.
        RuntimeError: if training collapses.
    """
    path = recipe_path(recipe)
    known = _parameters(path, "model")
    planned = {} if plan is None else model_arguments(*plan, known)
    # what both take, such as patch_size, is said once, of the method
    data = _parameters(path, "data")
    cli_class = type("CLI", (_CLI,), {"shared": [name for name in known if name in data]})
    cli = cli_class(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "callbacks": [
                ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1, enable_version_counter=False),
                SeedEveryBatch(),
                CollapseMonitor(),
                EncoderWriter(),
            ],
            # a data loader of an epoch knows which epoch it is
            "reload_dataloaders_every_n_epochs": 1,
            "limit_val_batches": 0,
        },
        args=[
            "fit",
            "--config",
            str(path),
            *(f"--model.init_args.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in planned.items()),
            *arguments,
        ],
    )
    return cli.trainer
