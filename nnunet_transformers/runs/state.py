"""The state of a run, ``last.ckpt``: written after every epoch and every few minutes, whole or not at all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .._atomic import replacing
from ..weights.file import read_state

INTERVAL = timedelta(minutes=10)
NAME = ModelCheckpoint.CHECKPOINT_NAME_LAST
FILE = NAME + ModelCheckpoint.FILE_EXTENSION
# states that Lightning writes when SLURM requeues a job, and finds by itself
REQUEUED = "hpc_ckpt_*.ckpt"
REQUEUE_SIGNAL: Any = getattr(signal, "SIGUSR1", None)  # Windows has none


class EpochState(ModelCheckpoint):
    """Write the state at the start of a run and after every epoch.

    With the state of the start, a run that was killed in its first epoch resumes like any other.
    """

    def __init__(self) -> None:
        # a name instead of save_last, by which Lightning writes nothing before the end unless it keeps others too;
        # saved after the epoch's files, even if only some epochs are validated
        super().__init__(filename=NAME, every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        loop: Any = trainer.fit_loop
        if loop._combined_loader_states_to_load:
            # To count the steps of the schedule, Lightning has built the first loader before it read the state. It
            # builds another one at the start of the epoch, which gets the position, if the last one is old.
            loop._last_train_dl_reload_epoch = float("-inf")
        if trainer.global_step == 0 and self.dirpath is not None:
            trainer.save_checkpoint(Path(self.dirpath) / FILE)


class StepState(ModelCheckpoint):
    """Write the state every ``interval`` within an epoch, between two optimiser steps.

    Args:
        interval: shortest time between two states.
    """

    def __init__(self, interval: timedelta = INTERVAL) -> None:
        super().__init__(filename=NAME, train_time_interval=interval, enable_version_counter=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _is_between_steps(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class RequeueBetweenSteps(Callback):
    """Delay the answer to SLURM's signal, a state and a requeue, until the optimiser step, or the epoch, is done.

    Lightning answers at once, also while gradients are accumulated or weights are updated, and its state lacks these.
    """

    def __init__(self) -> None:
        self._is_in_step = False
        self._received: tuple[Any, ...] | None = None
        self._answer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        answer = signal.getsignal(REQUEUE_SIGNAL) if REQUEUE_SIGNAL else None
        # Lightning restores the handlers of before at the end of a run
        if callable(answer) and current_thread() is main_thread():
            self._answer = answer
            signal.signal(REQUEUE_SIGNAL, self._receive)

    def _receive(self, *received: Any) -> None:
        self._received = received
        if not self._is_in_step:
            self._reply()

    def _reply(self) -> None:
        self._is_in_step = False
        if self._received is not None:
            received, self._received = self._received, None
            self._answer(*received)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if _is_between_steps(trainer, batch_idx):
            self._reply()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reply()


def _is_between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a state of now is whole: gradients that are accumulated are no part of it, and an epoch has its own."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch


class SettingsOfTheCommand(Callback):
    """Let a resumed run have the learning rate, weight decay and momentum of its command, not those of the state.

    The files that it writes state the command's; after a divergence people resume with a lower rate.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before Lightning restores the optimisers
        self._given = [[_settings(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, given in zip(trainer.optimizers, self._given, strict=True):
            for group, settings in zip(optimizer.param_groups, given, strict=True):
                of_the_state, wanted = _settings(group)["initial_lr"], settings["initial_lr"]
                group.update(settings)
                # where the schedule has got to
                group["lr"] = group["lr"] * wanted / of_the_state if of_the_state else wanted
        for configured in trainer.lr_scheduler_configs:
            schedule: Any = configured.scheduler
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of a parameter group but for its rate at present; the peak is "initial_lr", as schedules call it."""
    return {"initial_lr": group["lr"], **{name: group[name] for name in group if name not in ("params", "lr")}}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reader and writer of states, without its detour over TMPDIR and without unpickling."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a state beside ``path``, then rename it.

        Raises:
            OSError: if it cannot be written; an existing state is then unchanged.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"could not write {path}: {error}. The state written before it is intact; free some space on that disk "
                "and resume with --ckpt_path last"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a state into main memory: tensors and plain types, with their checksums.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is truncated, not the state of a run, or would have to be unpickled.
        """
        return read_state(path)


class RestSampler(DistributedSampler[Any]):
    """Sampler of a process's share of the samples, in order, without those that a run has seen before it was resumed.

    Args:
        samples: samples of the epoch.
        trainer: trainer of the run.
        batch_size: samples per batch. An epoch ends with its last whole optimiser step: Lightning would end with a
            step of fewer batches, and still divide their gradient by the full number.

    Attributes:
        skipped: number of samples to leave out; ``len`` counts them still, as the epoch has them.
    """

    skipped = 0

    def __init__(self, samples: Dataset[Any], trainer: Trainer, batch_size: int) -> None:
        super().__init__(samples, trainer.world_size, trainer.global_rank, shuffle=False, drop_last=True)
        step = batch_size * trainer.accumulate_grad_batches
        self.num_samples = self.num_samples // step * step
        self.total_size = self.num_samples * trainer.world_size

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.skipped, None)


class ResumableLoader(DataLoader[Any]):
    """Loader whose position is part of the state of a run: a resumed epoch goes on after its last step.

    Args:
        samples: samples of the epoch.
        batch_size: samples per batch.
        trainer: trainer of the run.
        options: further arguments of ``DataLoader``.
    """

    def __init__(self, samples: Dataset[Any], batch_size: int, trainer: Trainer, **options: Any) -> None:
        self._trainer, self._rest = trainer, RestSampler(samples, trainer, batch_size)
        super().__init__(samples, batch_size, sampler=self._rest, **options)

    def state_dict(self) -> dict[str, int]:
        """Return what training has done of this epoch, not what workers have loaded: batches, and their samples."""
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
        return {"batches": progress.processed, "samples": progress.processed * (self.batch_size or 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the samples that were seen, in batches of whatever size; states of 0.2 count batches alone."""
        self._rest.skipped = state.get("samples", state["batches"] * (self.batch_size or 1))
