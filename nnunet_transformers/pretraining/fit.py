"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.resources import as_file, files
from pathlib import Path

from lightning import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .callbacks import CollapseMonitor, EncoderWriter, SeedEveryBatch
from .data import PretrainingData


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
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("model.init_args.patch_size", "data.patch_size")


def fit(recipe: str, arguments: Sequence[str]) -> None:
    """Run a recipe.

    A run saves its state after every epoch and its encoder beside it; ``--ckpt_path last`` continues it with the same
    crops and random numbers that it would have had.

    Args:
        recipe: name or file.
        arguments: of LightningCLI, such as ``--data.folder``, ``--trainer.max_epochs`` or ``--ckpt_path``.

    Raises:
        ValueError: on an unknown recipe, or settings that cannot work.
        RuntimeError: if training collapses.
    """
    defaults = {
        "callbacks": [
            ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1),
            SeedEveryBatch(),
            CollapseMonitor(),
            EncoderWriter(),
        ],
        # a data loader of an epoch knows which epoch it is
        "reload_dataloaders_every_n_epochs": 1,
        "limit_val_batches": 0,
    }
    _CLI(
        LightningModule,
        PretrainingData,
        subclass_mode_model=True,
        save_config_kwargs={"overwrite": True},
        trainer_defaults=defaults,
        args=["fit", "--config", str(recipe_path(recipe)), *arguments],
    )
