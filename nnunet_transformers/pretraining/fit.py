"""``nnunet-transformers pretrain fit``: LightningCLI with this package's recipes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from .callbacks import CollapseMonitor, EncoderWriter, SeedEveryBatch
from .from_plan import Planned, model_arguments


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
    """LightningCLI that checks, before it trains, that method, data, plan and folder go together."""

    shared: Sequence[str] = ()
    planned: Planned | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in self.shared:
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def before_fit(self) -> None:
        index, model = self.datamodule.index, self.model
        wanted = model.hparams.get("input_channels", 1)
        if len(index["channels"]) != wanted:
            raise ValueError(f"the prepared images have {len(index['channels'])} channels, the network takes {wanted}")
        if self.planned is not None:
            self._compare(index, self.planned.configuration)
        # --ckpt_path last looks there; each run has a logger's folder of its own
        root = Path(self.trainer.default_root_dir)
        if self.trainer.checkpoint_callback is not None:
            self.trainer.checkpoint_callback.dirpath = str(root)
        if (root / "last.ckpt").exists() and not self.config.fit.ckpt_path:
            raise FileExistsError(
                f"{root} holds a run already: continue it with --ckpt_path last, or choose another folder with "
                "--trainer.default_root_dir"
            )

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


def _class(recipe: Path, part: str) -> type:
    """A recipe's method ("model") or its data."""
    content = yaml.safe_load(recipe.read_text()) or {}
    try:
        module, _, name = content[part]["class_path"].rpartition(".")
        return getattr(import_module(module), name)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{recipe} names no class in {part}.class_path ({error!r})") from error


def _parameters(recipe: Path, part: str) -> list[str]:
    return list(inspect.signature(_class(recipe, part)).parameters)


def fit(recipe: str, arguments: Sequence[str], planned: Planned | None = None) -> Trainer:
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
    path = recipe_path(recipe)
    known = _parameters(path, "model")
    taken = {} if planned is None else model_arguments(planned, known)
    # what both take, such as patch_size, is said once, of the method
    data = _parameters(path, "data")
    cli_class = type("CLI", (_CLI,), {"shared": [name for name in known if name in data], "planned": planned})
    try:
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
                "strategy": _strategy(path),
            },
            args=[
                "fit",
                "--config",
                str(path),
                *(f"--model.init_args.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in taken.items()),
                *arguments,
            ],
        )
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    return cli.trainer


def _strategy(recipe: Path) -> str:
    """Where a step trains a part of the network only, DDP has to be told."""
    return getattr(_class(recipe, "model"), "strategy", "auto") if torch.cuda.device_count() > 1 else "auto"
