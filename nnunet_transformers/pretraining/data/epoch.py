"""Base of the data modules: a loader over an epoch of samples that fits the data and the memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ...runs.distributed import samples_per_step
from ...runs.state import ResumableLoader
from .epoch_samples import Epoch, ShuffledEpoch, check_counts
from .index import PreparedIndex
from .loader_memory import LoaderMemory, loader_memory


class EpochData(LightningDataModule, ABC):
    """Base of the data modules: a training loader over an ``Epoch``.

    Attributes:
        index: index of the images.
        batch_size: samples per batch and device.
        num_workers: worker processes of a loader.
        held_out: samples of held-out images, the same ones after every epoch; None for no validation.
    """

    index: PreparedIndex
    batch_size: int
    num_workers: int
    held_out: Epoch | None = None
    _is_length_free = False

    def __init__(self) -> None:
        super().__init__()
        self._memory: dict[int, LoaderMemory] = {}

    def epoch_length(self, samples_per_epoch: int | None, images: int | None = None) -> int:
        """Return the samples of an epoch: as wanted, or one per image, which ``train_dataloader`` raises to a step.

        Args:
            samples_per_epoch: wanted number; None leaves it open.
            images: number of images, by default all.

        Raises:
            ValueError: if the wanted number, or ``batch_size``, which is set before, is less than one.
        """
        check_counts(batch_size=self.batch_size, samples_per_epoch=samples_per_epoch)
        self._is_length_free = samples_per_epoch is None
        images = len(self.index.cases) if images is None else images
        return images if samples_per_epoch is None else samples_per_epoch

    def batch_size_of(self, samples: Epoch) -> int:
        """Return the samples per batch and device of an epoch."""
        return self.batch_size

    def is_length_free(self, samples: Epoch) -> bool:
        """Whether the length of an epoch may be raised to that of a step."""
        return self._is_length_free

    @property
    def attached_trainer(self) -> Trainer:
        """Trainer of the run.

        Raises:
            RuntimeError: if there is no trainer yet.
        """
        if self.trainer is None:
            raise RuntimeError(f"{type(self).__name__} has no trainer yet; call it through Trainer.fit")
        return self.trainer

    @abstractmethod
    def epoch(self) -> Epoch:
        """Return the dataset of the current epoch."""

    def train_dataloader(self) -> DataLoader:
        """Build the loader of the current epoch.

        Its workers are as many as hold their batches in memory. Where the images are fewer than the samples of a step,
        an epoch of random samples is a step, and a batch of images that are each seen once is smaller.

        Raises:
            ValueError: if an epoch has fewer samples than one optimiser step, and cannot have more.
        """
        # Lightning rebuilds the loader in every epoch (reload_dataloaders_every_n_epochs=1): workers learn the epoch
        trainer, samples = self.attached_trainer, self.epoch()
        samples.epoch = trainer.current_epoch
        self._fit(samples, trainer)
        batch_size = self.batch_size_of(samples)
        wanted = samples_per_step(trainer, batch_size)
        if len(samples) < wanted:
            raise ValueError(
                f"an epoch of {len(samples)} samples is less than one step of {wanted} samples (batch_size "
                f"{batch_size}, {trainer.world_size} processes, {trainer.accumulate_grad_batches} accumulated "
                "batches). Raise --data.init_args.samples_per_epoch, or lower --data.init_args.batch_size or "
                "--trainer.accumulate_grad_batches"
            )
        # not shuffled, so that n processes see the same samples per step as one process with an n times larger batch
        return ResumableLoader(
            samples,
            batch_size,
            trainer,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            **self._loader_memory(samples, trainer).options(),
        )

    @property
    def fitting_workers(self) -> int:
        """Number of workers that hold their batches in memory, as far as the training samples have shown."""
        return min((memory.workers for memory in self._memory.values()), default=self.num_workers)

    def _fit(self, samples: Epoch, trainer: Trainer) -> None:
        """Fit the epoch, or the batch, to few images."""
        wanted = samples_per_step(trainer, self.batch_size_of(samples))
        if len(samples) >= wanted:
            return
        if self.is_length_free(samples) and not isinstance(samples, ShuffledEpoch):
            rank_zero_info(f"{len(samples)} images: an epoch draws the {wanted} samples of a step from them")
            samples.samples = wanted
        elif isinstance(samples, ShuffledEpoch) and (fitting := len(samples) * self.batch_size // wanted):
            rank_zero_info(f"{len(samples)} images: batches of {fitting} instead of {self.batch_size}")
            self.batch_size = fitting

    def _loader_memory(self, samples: Epoch, trainer: Trainer) -> LoaderMemory:
        """Return the bound of the loader's memory; a line states it when the samples are loaded for the first time."""
        if id(samples) not in self._memory:
            found, line = loader_memory(samples, self.batch_size_of(samples), self.num_workers, trainer.num_devices)
            self._memory[id(samples)] = found
            rank_zero_info(line)
        return self._memory[id(samples)]

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Build the loader of the held-out images; none if there are none."""
        if self.held_out is None:
            return []
        return DataLoader(
            self.held_out,
            self.batch_size,
            sampler=self.sampler(self.held_out),
            num_workers=self.fitting_workers,
        )

    def sampler(self, samples: Dataset) -> DistributedSampler:
        """Build a sampler of this process's share of the samples, in order."""
        trainer = self.attached_trainer
        return DistributedSampler(samples, trainer.world_size, trainer.global_rank, shuffle=False)


def hold_out(names: Sequence[str], number: float, seed: int, fewest: int = 1) -> tuple[list[str], list[str]]:
    """Split images into those to train on and those held out for a validation loss, in the order given.

    Args:
        names: image names.
        number: images to hold out, or their share below 1.
        seed: seed of the choice.
        fewest: number on either side below which none is held out.

    Raises:
        ValueError: if the number is negative, or leaves fewer than ``fewest``; a share holds out none then.

    Examples:
        >>> hold_out(["a", "b", "c", "d"], 0.25, seed=0)
        (['a', 'b', 'd'], ['c'])
    """
    wanted = round(number * len(names)) if number < 1 else round(number)
    if number < 0:
        raise ValueError(f"val_images must be 0 or more, got {number:g}")
    if number >= 1 and len(names) - wanted < fewest:
        raise ValueError(f"val_images {number:g} of {len(names)} images leaves too few to train on; lower it")
    if min(wanted, len(names) - wanted) < fewest:
        return list(names), []
    chosen = set(np.random.default_rng(seed).permutation(len(names))[:wanted].tolist())
    training = [name for i, name in enumerate(names) if i not in chosen]
    return training, [name for i, name in enumerate(names) if i in chosen]
