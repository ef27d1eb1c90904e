"""Datasets whose samples depend on seed, epoch and index only, and the base of the data modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ...runs.distributed import samples_per_step
from ...runs.state import ResumableLoader
from .index import PreparedIndex


class Epoch(Dataset, ABC):
    """Dataset of random samples, drawn anew in each epoch.

    Sample i of epoch e depends on the seed, e and i only. A resumed run therefore sees the same samples as an
    uninterrupted one, with any number of workers.

    Args:
        samples: samples per epoch.
        seed: seed of the samples.

    Attributes:
        epoch: current epoch, set by ``EpochData``.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self.seed, self.epoch = samples, seed, 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.sample(self.generator(index))

    def generator(self, index: int) -> np.random.Generator:
        """Return the random generator of sample ``index``, and seed the global generators from it."""
        rng = np.random.default_rng((self.seed, self.epoch, index))
        # batchgeneratorsv2 draws from both global generators
        torch.manual_seed(int(rng.integers(2**62)))
        np.random.seed(int(rng.integers(2**32)))
        return rng

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Any:
        """Draw a sample from ``rng`` and from the global generators of torch and NumPy."""


class ShuffledEpoch(Epoch):
    """Dataset that visits each item once per epoch, in a new order each time.

    Args:
        items: number of items.
        seed: as for ``Epoch``.
    """

    def __init__(self, items: int, seed: int = 0) -> None:
        super().__init__(items, seed)
        self._order_of: int | None = None

    def __getitem__(self, index: int) -> Any:
        if self._order_of != self.epoch:
            self._order = np.random.default_rng((self.seed, self.epoch)).permutation(self.samples)
            self._order_of = self.epoch
        return self.sample(self.generator(index), int(self._order[index]))

    @abstractmethod
    def sample(self, rng: np.random.Generator, number: int | None = None) -> Any:
        """Draw a sample of item ``number``; by default of a random item."""


class EpochData(LightningDataModule, ABC):
    """Base of the data modules: a training loader over an ``Epoch``.

    Attributes:
        index: index of the images.
        batch_size: samples per batch and device.
        num_workers: worker processes of a loader.
    """

    index: PreparedIndex
    batch_size: int
    num_workers: int

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

        Raises:
            ValueError: if an epoch has fewer samples than one optimiser step.
        """
        # Lightning rebuilds the loader in every epoch (reload_dataloaders_every_n_epochs=1): workers learn the epoch
        trainer, samples = self.attached_trainer, self.epoch()
        samples.epoch = trainer.current_epoch
        wanted = samples_per_step(trainer, self.batch_size)
        if len(samples) < wanted:
            raise ValueError(
                f"an epoch of {len(samples)} samples is less than one step of {wanted} samples (batch_size "
                f"{self.batch_size}, {trainer.world_size} processes, {trainer.accumulate_grad_batches} accumulated "
                "batches). Raise --data.init_args.samples_per_epoch, or lower --data.init_args.batch_size or "
                "--trainer.accumulate_grad_batches"
            )
        # not shuffled, so that n processes see the same samples per step as one process with an n times larger batch
        return ResumableLoader(
            samples,
            self.batch_size,
            trainer,
            num_workers=self.num_workers,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
        )

    def sampler(self, samples: Dataset) -> DistributedSampler:
        """Build a sampler of this process's share of the samples, in order."""
        trainer = self.attached_trainer
        return DistributedSampler(samples, trainer.world_size, trainer.global_rank, shuffle=False)
