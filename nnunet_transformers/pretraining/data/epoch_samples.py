"""Datasets whose samples depend on seed, epoch and index only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .index import PreparedIndex


def check_is_3d(patch_size: Sequence[int], index: PreparedIndex) -> None:
    """Raise ValueError unless a patch has three axes, and the images are volumes."""
    if index.is_flat:
        raise ValueError("these views are of volumes, and the prepared images are 2D")
    if len(patch_size) != 3:
        raise ValueError(
            f"these views are of volumes: --model.init_args.patch_size has three axes, not {[*patch_size]}"
        )


def check_counts(least: int = 1, **counts: int | None) -> None:
    """Check whole numbers among a data module's arguments.

    Args:
        least: smallest number.
        counts: values by the names of their arguments; None is not given.

    Raises:
        ValueError: if one is lower.
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")


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
