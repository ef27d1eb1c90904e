"""LightningCLI for recipes, shared by pretraining and classification."""

from __future__ import annotations

import logging
import re
import warnings
from abc import ABC, abstractmethod
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities import seed
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities import rank_zero
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from .._lease import lease
from ..cpu import optimize
from .argument_errors import in_one_line
from .callbacks import CheckpointWriter, SeedEveryBatch
from .options import OUTPUT, given, long_names, with_folder
from .progress import EpochLines
from .recipe import Recipe
from .state import (
    FILE,
    NAME,
    REQUEUED,
    AtomicCheckpointIO,
    EpochState,
    RequeueBetweenSteps,
    SettingsOfTheCommand,
    StepState,
)

# how Lightning begins what it says of itself at every run, and warns of what is meant to be
LIGHTNING_ON_ITSELF = (
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "\U0001f4a1 Tip:",
    "Loading `train_dataloader`",
    "Seed set to",
    "`weights_only` was not set",
    "\nDetected KeyboardInterrupt",  # which the command says itself
    "`Trainer(limit_val_batches=1.0)` was configured",
)
# its loggers of these messages: a filter of a logger sees its own messages only
LOGGERS = (rank_zero, seed, checkpoint_connector)
# the last is PyTorch's, of workers beyond the cores, which the line of the loader states
UNFOUNDED = (
    "LightningCLI's args parameter",
    "Starting from v1.9.0",
    "Checkpoint directory",
    "This DataLoader will create",
)


def _concerns_the_run(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(LIGHTNING_ON_ITSELF)


class RecipeCLI(LightningCLI, ABC):
    """LightningCLI that checks module, data and output folder before training.

    Attributes:
        shared: names of arguments of both module and data module, which users give to the module only.
        from_method: functions that compute an argument of the data module from the built module, by its name.
        written: names of the files that runs write to their folder; one that holds them already is refused.
        kind: folder of these runs in nnU-Net's results.
        held: what is held until the run ends: the lease of its folder.
    """

    shared: Sequence[str] = ()
    from_method: Mapping[str, Callable[[Any], Any]] = {}
    written: Sequence[str] = ()
    kind: str
    held: ExitStack

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in self.shared:
            parser.link_arguments(f"model.init_args.{name}", f"data.init_args.{name}")
        for name, function in self.from_method.items():
            parser.link_arguments("model", f"data.init_args.{name}", function, apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Take the method's arguments from the command, also where a file is given: Lightning would take the file's."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if ``self.model`` cannot be trained on ``self.datamodule``."""

    def before_fit(self) -> None:
        self.check()
        if isinstance(self.trainer.accelerator, CPUAccelerator):
            optimize(self.model)
        root = Path(self.trainer.default_root_dir)
        if self.config.fit.trainer.logger in (None, True):
            self.trainer.logger = CSVLogger(str(root))
        for callback in self.trainer.checkpoint_callbacks:
            # by default the folder of a logger's version, where --ckpt_path last would not find the state
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(root)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if self.config.fit.ckpt_path is None and is_requeued(root) and not _is_newest_of_requeue(root):
            # Lightning would take its state of the requeue, however old
            self.config_init.fit.ckpt_path = NAME
        if self.trainer.is_global_zero:
            self.held.enter_context(lease(root, root / "run.lease"))
            _check_folder(root, self.config.fit.ckpt_path, self.written)


def is_requeued(root: Path) -> bool:
    """Whether a run of a folder goes on by itself: a job of SLURM that has left a state for its requeue."""
    return SLURMEnvironment.detect() and any(root.glob(REQUEUED))


def _is_newest_of_requeue(root: Path) -> bool:
    """Whether no state was written after the newest one that SLURM's signal has asked for."""
    own = root / FILE
    return not own.is_file() or max(path.stat().st_mtime for path in root.glob(REQUEUED)) >= own.stat().st_mtime


def _check_folder(root: Path, state: str | None, written: Sequence[str]) -> None:
    """Check that a run can start in its folder, or be resumed there.

    Args:
        root: the folder.
        state: ``--ckpt_path``.
        written: names of the files that runs write.

    Raises:
        ValueError: if the state is on the internet.
        FileNotFoundError: if there is no state to resume from.
        FileExistsError: if the folder holds another run.
    """
    if state and "://" in state:
        raise ValueError(f"--ckpt_path {state}: a run resumes from a file only; download it first")
    if state == NAME and not any(root.glob(f"{NAME}*.ckpt")):
        raise FileNotFoundError(
            f"{root} holds no {FILE} to resume from; leave out --ckpt_path to start a run there, or name its folder "
            "with --output"
        )
    if state or is_requeued(root):
        return
    if (root / FILE).exists():
        raise FileExistsError(
            f"{root} already holds a run: resume it with --ckpt_path last, or choose another folder with --output"
        )
    existing = [name for name in written if (root / name).exists()]
    if existing:
        raise FileExistsError(
            f"{root} already holds {existing[0]}, which a run would replace: move it, or choose another folder "
            "with --output"
        )


def run_recipe(
    recipe: Recipe,
    cli_class: type[RecipeCLI],
    arguments: Sequence[str],
    trainer_defaults: Mapping[str, Any],
    **attributes: Any,
) -> Trainer:
    """Train by a recipe.

    Args:
        recipe: result of ``read_recipe``.
        cli_class: command line with its checks.
        arguments: arguments of LightningCLI, which override the recipe, also by their short names (``options``).
        trainer_defaults: arguments of the trainer, which recipe and arguments override; the callbacks among them are
            added to those of every run.
        attributes: further class attributes of the command line; ``planned`` is the planned configuration that the run
            follows, if any.

    Returns:
        the trainer, with metrics, callbacks and profiler.

    Raises:
        ValueError: if the settings are invalid or contradict each other.
        FileNotFoundError: if the data do not exist.
        FileExistsError: if the output folder holds another run.
        FolderInUse: if another run is writing to the output folder.
        RuntimeError: if the run diverges, collapses, or ends without a file.
    """
    planned = attributes.get("planned")
    followed = planned and f"{planned.plans['dataset_name']}/{planned.plans['plans_name']}__{planned.name}"
    words, arguments = arguments, with_folder(recipe, long_names(recipe, arguments), cli_class.kind, followed)
    taken = recipe.parameters("data")
    from_method = {name: function for name, function in cli_class.from_method.items() if name in taken}
    shared = [name for name in recipe.parameters("model") if name in taken and name not in from_method]
    callbacks = [
        SettingsOfTheCommand(),
        EpochState(),
        StepState(),
        RequeueBetweenSteps(),
        SeedEveryBatch(),
        *trainer_defaults.get("callbacks", ()),
        writer := CheckpointWriter(),
        EpochLines(),
    ]
    for module in LOGGERS:
        logging.getLogger(module.__name__).addFilter(_concerns_the_run)
    try:
        with ExitStack() as held:
            held.enter_context(warnings.catch_warnings())  # the caller's filters stay
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            for beginning in UNFOUNDED:
                warnings.filterwarnings("ignore", re.escape(beginning))
            attributes |= {"shared": shared, "from_method": from_method, "held": held}
            cli = type("CLI", (cli_class,), attributes)(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_kwargs={"overwrite": True},
                trainer_defaults={
                    # data modules rebuild their loader in every epoch, see EpochData
                    "reload_dataloaders_every_n_epochs": 1,
                    "enable_progress_bar": _has_terminal(),
                    **trainer_defaults,
                    "callbacks": callbacks,
                },
                # instead of a page of usage
                parser_kwargs={"exit_on_error": False, "fit": {"exit_on_error": False}},
                args=["fit", "--config", yaml.safe_dump(recipe.content), *arguments],
            )
    except ArgumentError as error:
        raise ValueError(in_one_line(str(error), recipe, words)) from error
    except MisconfigurationException as error:
        advice = "; leave --trainer.accelerator out to train on what there is" if "backend found" in str(error) else ""
        raise ValueError(f"{str(error).rstrip('!')}{advice}") from error
    except SystemExit as error:
        # as Lightning ends the process after Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(_how_to_go_on(given(recipe, arguments, OUTPUT))) from error
        raise
    except ValueError as error:
        # jsonargparse wraps errors of module and data module into a long message about the types that it tried
        if str(error).startswith("Does not validate") and isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    trainer: Trainer = cli.trainer
    if trainer.is_global_zero:
        _check_written(trainer, writer, cli.written)
    return trainer


def _has_terminal() -> bool:
    """Whether a progress bar can be drawn; in a log it would be its last state alone."""
    console = Console()
    return console.is_terminal or console.is_jupyter


def _how_to_go_on(root: str) -> str:
    """Return what to do after an interruption: resume, if a state was written."""
    if not (Path(root) / FILE).exists():
        return ""
    return f"{root} holds the state of the run: give its command again with --ckpt_path last"


def _check_written(trainer: Trainer, writer: CheckpointWriter, written: Sequence[str]) -> None:
    """Raise RuntimeError if a run has ended without a file: users take a run that ends quietly for a success."""
    root = Path(trainer.default_root_dir)
    if not writer.written and not any((root / name).exists() for name in written):
        reason = writer.left_out or "no epoch had a validation score that could be compared"
        raise RuntimeError(
            f"the run ended after {trainer.global_step} steps without {written[0]}: {reason}. Train for longer, lower "
            "the learning rate or enlarge the batch"
        )
