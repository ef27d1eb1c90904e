"""Samples that depend on seed, epoch and index alone, and their loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Epoch(Dataset, ABC):
    """``samples`` samples an epoch, drawn anew in each.

    Sample i of epoch e depends on seed, e and i alone, so that a resumed run sees what an uninterrupted one would have
    seen, whatever the number of workers.

    Args:
        samples: length of an epoch.
        seed: of the samples.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self.seed, self.epoch = samples, seed, 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.sample(self.generator(index))

    def generator(self, index: int) -> np.random.Generator:
        """Random numbers of a sample; the global generators are seeded from them."""
        rng = np.random.default_rng((self.seed, self.epoch, index))
        # batchgeneratorsv2 draws from both global generators
        torch.manual_seed(int(rng.integers(2**62)))
        np.random.seed(int(rng.integers(2**32)))
        return rng

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one."""


class ShuffledEpoch(Epoch):
    """Each of ``items`` once an epoch, in another order in each.

    Args:
        items: number of them.
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
        """Draw a sample of the item of a number, or of a random one."""


class EpochData(LightningDataModule, ABC):
    """What the data of all methods share.

    Attributes:
        index: of the prepared data.
        batch_size: samples in a batch, on each device.
    """

    index: dict[str, Any]
    batch_size: int
    num_workers: int

    @abstractmethod
    def epoch(self) -> Epoch:
        """The samples of the current epoch."""

    def train_dataloader(self) -> DataLoader:
        # made anew in every epoch (reload_dataloaders_every_n_epochs=1), so that workers know which one it is
        samples = self.epoch()
        samples.epoch = self.trainer.current_epoch
        wanted = self.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        if len(samples) < wanted:
            raise ValueError(
                f"an epoch of {len(samples)} samples is less than one step: batch_size {self.batch_size}, "
                f"{self.trainer.world_size} processes and {self.trainer.accumulate_grad_batches} accumulated batches "
                f"make {wanted}. Set --data.init_args.samples_per_epoch, or a smaller batch or accumulation"
            )
        # unshuffled, so that n processes see in a step what one with an n times larger batch would see
        sampler = DistributedSampler(samples, self.trainer.world_size, self.trainer.global_rank, shuffle=False)
        return DataLoader(
            samples,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
        )
