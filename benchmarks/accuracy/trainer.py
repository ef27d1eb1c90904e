"""nnU-Net's trainers with a given length, seeds, a record of processor time, and their state saved every epoch."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunet_transformers._atomic import replacing
from nnunet_transformers._reading import read_json
from nnunet_transformers.cpu import optimize
from nnunet_transformers.plans.builder import find_trainer
from nnunet_transformers.plans.plan_files import load_plans
from nnunet_transformers.plans.training import ENTRY as TRAINING
from nnunet_transformers.trainers.augmentation import Augments

from .prepare import check_prepared, group_of
from .tables import Data, Row

# of the length that nnU-Net's trainers state their warm-up for
NNUNET_EPOCHS = 1000
# the curve's points; more than 20, so that a schedule by epochs is nearly one by iterations
EPOCHS = 40
CPU = torch.device("cpu")
LOGGED = "processor_seconds"


class Stopped(Exception):
    """The training was asked to end; its state is saved."""


class Measured(Augments):
    """Mixed into a trainer.

    Attributes:
        seed: of everything random, by epoch, so that a continued training equals an uninterrupted one.
        is_stopped: asked after each epoch.
        keeps_state: save the state every epoch, so that a killed run goes on.
        labelled: number of the fold's training patients that are trained on, drawn by the seed; None for all.
        group: regular expression of what the cases of one patient have in common.
        is_captured: run the network's passes of a training step as CUDA graphs.
    """

    seed = 0
    is_stopped: Callable[[], bool] = staticmethod(lambda: False)
    keeps_state = True
    labelled: int | None = None
    group = r".*"
    is_captured = False

    def initialize(self) -> None:
        seed_all(self.seed, 0)
        super().initialize()
        if self.is_captured:
            self._capture()
        if self.device.type == "cpu":
            # for nnU-Net's networks too: the comparison is of networks, not of what serves them on a processor
            optimize(self.network)

    def _capture(self) -> None:
        """Replace the passes by CUDA graphs: the patches are small, and launching their kernels takes longer than they.

        It comes before the data loaders, whose thread pins memory, which no other stream may do during a capture.
        """
        size = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
        images = torch.zeros(size, device=self.device)
        try:
            with torch.autocast(self.device.type, cache_enabled=False):
                torch.cuda.make_graphed_callables(self.network.train(), (images,), allow_unused_input=True)
        except RuntimeError as error:  # a network that waits for the device in its forward pass
            self.print_to_log_file(f"no CUDA graphs: {error}")

    def do_split(self) -> tuple[list[str], list[str]]:
        """The fold's cases, of which those of ``labelled`` patients are trained on."""
        training, validation = super().do_split()
        if self.labelled is None:
            return training, validation
        patients = sorted({group_of(case, self.group) for case in training})
        drawn = set(np.random.default_rng(self.seed).choice(patients, self.labelled, replace=False))
        return [case for case in sorted(training) if group_of(case, self.group) in drawn], validation

    def _do_i_compile(self) -> bool:
        """No: compiling takes longer than a short training, and other time for each network."""
        return False

    def plot_network_architecture(self) -> None:
        """Leave it out."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.save_every = 1 if self.keeps_state else self.num_epochs + 1
        # no checkpoint is the best; a picture takes seconds every epoch
        self._best_ema = np.inf
        self.logger.plot_progress_png = lambda output_folder: None
        self.logger.local_logger.my_fantastic_logging.setdefault(LOGGED, [])

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        seed_all(self.seed, 1 + self.current_epoch)
        self._start = time.process_time()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self.logger.log(LOGGED, time.process_time() - self._start, self.current_epoch)
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        # the same patches in every epoch, for smooth curves
        seed_all(0, 0)

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.is_stopped() and self.current_epoch < self.num_epochs:
            raise Stopped

    def save_checkpoint(self, filename: str) -> None:
        with replacing(filename) as partial_file:
            super().save_checkpoint(str(partial_file))

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        # nnU-Net's trainers with warm-up do not ask for it, and PyTorch then refuses nnU-Net's checkpoints
        with patch.object(torch, "load", partial(torch.load, weights_only=False)):
            super().load_checkpoint(filename_or_checkpoint)


def seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and PyTorch with what the numbers give together."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def split_iterations(iterations: int) -> tuple[int, int]:
    """Number of epochs, and iterations of each."""
    per_epoch = max(1, iterations // EPOCHS)
    return max(1, round(iterations / per_epoch)), per_epoch


def changed_plans(plans: Mapping[str, Any], row: Row, data: Data) -> dict[str, Any]:
    """Copy a plan with what row and dataset change."""
    changed = deepcopy(dict(plans))
    configuration = changed["configurations"][data.configuration]
    if data.largest_batch is not None:
        configuration["batch_size"] = min(configuration["batch_size"], data.largest_batch)
    configuration["batch_size"] = max(1, configuration["batch_size"] // row.batch_divisor)
    of = row.patch_multiple
    configuration["patch_size"] = [-(-n // of) * of for n in configuration["patch_size"]]
    training = {**configuration.get(TRAINING, {}), **row.configuration.get(TRAINING, {})}
    configuration.update(row.configuration)
    if training:
        configuration[TRAINING] = training
    configuration["architecture"]["arch_kwargs"].update(row.arguments)
    return changed


def make_trainer(row: Row, data: Data, fold: int, seed: int, iterations: int, device: torch.device = CPU) -> Any:
    """Create the trainer of a run, in the folder that nnU-Net derives from nnUNet_results.

    Args:
        row, data: entries of the tables.
        fold: fold of the dataset's split.
        seed: of everything random.
        iterations: length of the training, of which schedules depend.
        device: where the network is trained.

    Raises:
        RefusedError: if the dataset is not prepared for the row.
        ValueError: if the trainer has no attribute that the row changes.
    """
    check_prepared(data, row)
    folder = Path(nnUNet_preprocessed) / data.dataset
    plans = load_plans(folder, row.plans)
    base = find_trainer(row.trainer)
    # named as the trainer that it extends, so that nnU-Net can predict with what it leaves
    trainer = type(base.__name__, (Measured, base), {})(
        plans={**changed_plans(plans, row, data), "continue_training": True},
        configuration=data.configuration,
        fold=fold,
        dataset_json=read_json(folder / "dataset.json"),
        device=device,
    )
    trainer.seed, trainer.labelled, trainer.group = seed, data.labelled, data.group
    trainer.num_epochs, trainer.num_iterations_per_epoch = split_iterations(iterations)
    trainer.num_val_iterations_per_epoch = max(2, trainer.num_iterations_per_epoch // 10)
    if hasattr(trainer, "warmup_duration_whole_net"):  # in epochs, of Primus
        share = trainer.warmup_duration_whole_net / NNUNET_EPOCHS
        trainer.warmup_duration_whole_net = max(1, round(share * trainer.num_epochs))
    for name, value in row.attributes.items():
        if not hasattr(trainer, name):
            raise ValueError(f"{row.title}: {row.trainer} has no attribute {name}")
        setattr(trainer, name, value)
    return trainer
