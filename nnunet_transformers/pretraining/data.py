"""Samples from prepared images, read block by block."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .prepare import INDEX
from .views import cut_out, flip, intensity_transforms, random_resized_crop, rotate, rotations_of


def read_index(folder: Path) -> dict[str, Any]:
    """The list of a prepared folder's images.

    Raises:
        FileNotFoundError: if the folder was not prepared, or not to the end.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no prepared folder; make one with `nnunet-transformers pretrain prepare`")
    return json.loads(path.read_text())


class PreparedImages:
    """Prepared images, of which parts are read: an image is opened, not loaded.

    Args:
        folder: prepared images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.shapes = {case["name"]: tuple(case["shape"]) for case in self.index["cases"]}
        self.names = list(self.shapes)

    def read(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """A part of an image.

        An axis that ends before the part does is filled up on both sides with the image's smallest value, which is air
        where zero would be tissue.

        Args:
            name: of the image.
            start: first voxel on each axis, three of them.
            size: voxels per axis; two of them take a slice.

        Returns:
            (channels, *size), float32.
        """
        blosc2.set_nthreads(1)
        mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
        image = blosc2.open(str(self.folder / f"{name}.b2nd"), mode="r", **mmap)
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        part = np.asarray(image[(slice(None), *(slice(a, a + s) for a, s in zip(start, wanted, strict=True)))])
        missing = [s - n for s, n in zip(wanted, part.shape[1:], strict=True)]
        if any(missing):
            ends = [(m // 2, m - m // 2) for m in missing]
            part = np.stack([np.pad(channel, ends, constant_values=channel.min()) for channel in part])
        part = torch.from_numpy(np.ascontiguousarray(part))
        return part[:, 0] if len(size) == 2 else part

    def crop(self, size: Sequence[int], rng: np.random.Generator) -> Tensor:
        """A random part of a random image, see ``read``."""
        name = self.names[rng.integers(len(self.names))]
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        room = [max(0, n - s) for n, s in zip(self.shapes[name][1:], wanted, strict=True)]
        return self.read(name, [int(rng.integers(n + 1)) for n in room], size)


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
        rng = np.random.default_rng((self.seed, self.epoch, index))
        # batchgeneratorsv2 draws from both global generators
        torch.manual_seed(int(rng.integers(2**62)))
        np.random.seed(int(rng.integers(2**32)))
        return self.sample(rng)

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> Any:
        """Draw one."""


class MaskedViews(Epoch):
    """Two views of a random crop, turned by right angles, parts of them noise (QT-UNet thesis, section 3.3.12).

    A sample is a pair of (view, what it should be reconstructed to, index of its turn in ``rotations_of``), the first
    two (channels, *patch_size).

    Args:
        folder: prepared images.
        patch_size: voxels per axis; two of them take a random slice.
        samples, seed: as for ``Epoch``.
    """

    def __init__(self, folder: Path, patch_size: Sequence[int], samples: int, seed: int = 0) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size = PreparedImages(folder), tuple(patch_size)
        self.rotations = rotations_of(self.patch_size)

    def sample(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor, int], ...]:
        crop = self.images.crop(self.patch_size, rng)
        return tuple(self._view(crop, int(rng.integers(len(self.rotations)))) for _ in range(2))

    def _view(self, crop: Tensor, turn: int) -> tuple[Tensor, Tensor, int]:
        target = rotate(crop, self.rotations[turn]).contiguous()
        return cut_out(target), target, turn


class TwoViews(Epoch):
    """Two views of a random crop, (channels, *patch_size) each (UniMiSS appendix and release).

    A volume's views lie in one crop of 1.8 times their size in-plane, each 0.8 to 1.2 times its size there before it is
    resized; an image's hold 0.14 to 1 of it by area. Both are mirrored and change in intensity.

    Args:
        folder: prepared images.
        patch_size: of a view; two axes take views of slices.
        channels: a grey image is repeated to so many.
        samples, seed: as for ``Epoch``.
    """

    def __init__(self, folder: Path, patch_size: Sequence[int], channels: int, samples: int, seed: int = 0) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size, self.channels = PreparedImages(folder), tuple(patch_size), channels
        self.intensity = intensity_transforms()

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        *depth, height, width = self.patch_size
        if depth:
            in_plane, scale = (0.8, 1.2), rng.uniform(1.4, 1.8)
            crop = self.images.crop((2 * depth[0], round(scale * height), round(scale * width)), rng)
            scales, p = [(1.0, 1.0), in_plane, in_plane], 0.8
        else:
            crop = self.images.crop(self.patch_size, rng)
            scales, p = [(0.14**0.5, 1.0)] * 2, 0.5
        return tuple(self._view(crop, scales, p) for _ in range(2))

    def _view(self, crop: Tensor, scales: Sequence[tuple[float, float]], p: float) -> Tensor:
        view = flip(random_resized_crop(crop, self.patch_size, scales), p)
        view = self.intensity(image=view)["image"]
        return view.expand(self.channels, *view.shape[1:]).contiguous() if len(view) == 1 else view


class _Data(LightningDataModule, ABC):
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


class MaskedViewData(_Data):
    """Batches of masked views.

    Args:
        folder: prepared images.
        patch_size: voxels per axis; two of them make 2D crops.
        batch_size: crops in a batch, on each device.
        samples_per_epoch: crops in an epoch, on all devices; as many as there are images by default.
        num_workers: processes that read.
        seed: of the crops and views.
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
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        self.views = MaskedViews(Path(folder), patch_size, samples_per_epoch or len(self.index["cases"]), seed)

    def epoch(self) -> MaskedViews:
        return self.views


class ViewData(_Data):
    """Views of images and of volumes, whole epochs of either in turn (UniMiSS).

    Args:
        folder_3d: prepared volumes.
        folder_2d: prepared images; slices of the volumes by default.
        patch_size_2d, patch_size_3d: sizes of the views.
        input_channels_2d: of the network's 2D form.
        batch_size: samples in a batch, on each device.
        samples_per_epoch: samples in an epoch, on all devices; as many as there are volumes by default.
        period: epochs of images before those of volumes, and the other way round.
        num_workers: processes that read.
        seed: of the views.
    """

    def __init__(
        self,
        folder_3d: str,
        patch_size_2d: Sequence[int],
        patch_size_3d: Sequence[int],
        folder_2d: str | None = None,
        input_channels_2d: int = 3,
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        period: int = 2,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.period = batch_size, num_workers, period
        self.index = read_index(Path(folder_3d))
        samples = samples_per_epoch or len(self.index["cases"])
        self.images = TwoViews(Path(folder_2d or folder_3d), patch_size_2d, input_channels_2d, samples, seed)
        self.volumes = TwoViews(Path(folder_3d), patch_size_3d, 1, samples, seed)

    def epoch(self) -> TwoViews:
        return (self.images, self.volumes)[self.trainer.current_epoch // self.period % 2]
