"""Random crops of prepared images, read block by block."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .prepare import INDEX


def read_index(folder: Path) -> dict[str, Any]:
    """The list of a prepared folder's images.

    Raises:
        FileNotFoundError: if the folder was not prepared, or not to the end.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no prepared folder; make one with `nnunet-transformers pretrain prepare`")
    return json.loads(path.read_text())


class RandomCrops(Dataset):
    """``samples`` random crops an epoch, drawn anew in each.

    The crop of index i in epoch e depends on seed, e and i alone, so that a resumed run sees what an uninterrupted one
    would have seen, whatever the number of workers. An axis shorter than the crop is filled up with the image's
    smallest value, which is air where zero would be tissue.

    Args:
        folder: prepared images.
        patch_size: voxels per axis; two of them take a random slice.
        samples: length of an epoch.
        seed: of the crops.
    """

    def __init__(self, folder: Path, patch_size: Sequence[int], samples: int, seed: int = 0) -> None:
        self.folder, self.patch_size, self.samples, self.seed = Path(folder), tuple(patch_size), samples, seed
        self.names = [case["name"] for case in read_index(self.folder)["cases"]]
        self.epoch = 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        """(channels, *patch_size), float32."""
        rng = np.random.default_rng((self.seed, self.epoch, index))
        blosc2.set_nthreads(1)
        mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
        name = self.names[rng.integers(len(self.names))]
        image = blosc2.open(str(self.folder / f"{name}.b2nd"), mode="r", **mmap)
        size = (1, *self.patch_size) if len(self.patch_size) == 2 else self.patch_size
        starts = [int(rng.integers(max(0, n - s) + 1)) for n, s in zip(image.shape[1:], size, strict=True)]
        crop = np.asarray(image[(slice(None), *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))])
        missing = [s - n for s, n in zip(size, crop.shape[1:], strict=True)]
        if any(missing):
            ends = [(m // 2, m - m // 2) for m in missing]
            crop = np.stack([np.pad(channel, ends, constant_values=channel.min()) for channel in crop])
        crop = torch.from_numpy(np.ascontiguousarray(crop))
        return crop[:, 0] if len(self.patch_size) == 2 else crop


class PretrainingData(LightningDataModule):
    """Batches of random crops.

    Args:
        folder: prepared images.
        patch_size: voxels per axis; two of them make 2D crops.
        batch_size: crops in a batch, on each device.
        samples_per_epoch: crops in an epoch, on all devices; as many as there are images by default.
        num_workers: processes that read.
        seed: of the crops.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.index = read_index(Path(folder))
        self.crops = RandomCrops(Path(folder), patch_size, samples_per_epoch or len(self.index["cases"]), seed)

    def train_dataloader(self) -> DataLoader:
        # made anew in every epoch (reload_dataloaders_every_n_epochs=1), so that workers know which one it is
        self.crops.epoch = self.trainer.current_epoch
        return DataLoader(
            self.crops,
            self.hparams.batch_size,
            num_workers=self.hparams.num_workers,
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
        )
