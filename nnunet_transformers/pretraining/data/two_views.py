"""UniMiSS's views: two of an image or of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...runs.distributed import samples_per_step
from .epoch import EpochData
from .epoch_samples import Epoch, check_counts
from .index import PreparedIndex, read_index
from .prepared_images import PreparedImages
from .transforms import flip, random_resized_crop, unimiss_image_transforms, unimiss_intensity_transforms


class TwoViews(Epoch):
    """Two views of a random crop, (channels, *patch_size) each (UniMiSS, appendix and release).

    The views of a volume are taken from one crop of 1.5 times their depth, the release's tiles of 24 slices, and 1.4 to
    1.8 times their in-plane size, as far as the volume extends. Each covers 0.8 to 1.2 times its in-plane size before
    it is resized, is mirrored on each axis with probability 0.8, and changes in intensity. Those of an image or slice:
    ``unimiss_image_transforms``, on values that are scaled to 0 to 1 and back.

    Args:
        folder: folder of prepared images.
        patch_size: size of a view; two axes make views of slices.
        channels: number of channels; a grey image is repeated.
        samples, seed: as for ``Epoch``.
        margin: share of a volume's height and width that is left out at either end, as far as a view fits.
    """

    def __init__(
        self,
        folder: Path,
        patch_size: Sequence[int],
        channels: int,
        samples: int,
        seed: int = 0,
        margin: float = 0.0,
    ) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size, self.channels = PreparedImages(folder), tuple(patch_size), channels
        self.margin = margin
        if len(self.patch_size) == 2:
            self.transforms = [unimiss_image_transforms(self.patch_size, second) for second in (False, True)]
        else:
            self.transforms = [unimiss_intensity_transforms(second) for second in (False, True)]

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        name = self.images.names[rng.integers(len(self.images.names))]
        if len(self.patch_size) == 2:
            first, second = self._of_image(self.images.crop(self.images.shapes[name][2:], rng, name))
        else:
            first, second = self._of_volume(self._tile(name, rng))
        return self._repeated(first), self._repeated(second)

    def _of_image(self, image: Tensor) -> list[Tensor]:
        low, high = image.min(), image.max()
        scale = (high - low).clamp(min=torch.finfo(image.dtype).tiny)
        # torchvision knows one channel and three; others are as many grey images
        image = image if len(image) in (1, 3) else image[:, None]
        return [(view((image - low) / scale) * scale + low).reshape(-1, *self.patch_size) for view in self.transforms]

    def _tile(self, name: str, rng: np.random.Generator) -> Tensor:
        """Read a random crop that both views are taken from."""
        (_, *shape), (depth, *plane) = self.images.shapes[name], self.patch_size
        wanted = (tile_depth(depth), *(round(rng.uniform(1.4, 1.8) * n) for n in plane))
        start, size = [], []
        for voxels, patch, crop, margin in zip(shape, self.patch_size, wanted, (0.0, *[self.margin] * 2), strict=True):
            # at most the volume without its margin, at least a view
            kept = max(min(patch, voxels), round(voxels * (1 - 2 * margin)))
            size.append(max(patch, min(crop, kept)))
            start.append((voxels - kept) // 2 + int(rng.integers(max(0, kept - size[-1]) + 1)))
        return self.images.read(name, start, size)

    def _of_volume(self, tile: Tensor) -> list[Tensor]:
        boxes = [(1.0, 1.0), (0.8, 1.2), (0.8, 1.2)]
        return [
            transform(image=flip(random_resized_crop(tile, self.patch_size, boxes), 0.8, (1, 2, 3)))["image"]
            for transform in self.transforms
        ]

    def _repeated(self, view: Tensor) -> Tensor:
        return view.expand(self.channels, *view.shape[1:]).contiguous() if len(view) == 1 else view


def tile_depth(depth: int) -> int:
    """Slices of the crop that views of ``depth`` slices are taken from: 24 for 16, as in UniMiSS's release."""
    return 3 * depth // 2


def count_tiles(index: PreparedIndex, depth: int) -> int:
    """Count the overlapping tiles of all volumes, at the release's step of 4 slices for views of 16: its epoch."""
    step = max(1, depth // 4)
    return sum(max(0, -(-(case.shape[1] - tile_depth(depth)) // step)) + 1 for case in index.cases)


class TwoViewData(EpochData):
    """Data module of ``TwoViews`` of images and of volumes, in alternating groups of epochs (UniMiSS).

    Args:
        folder_3d: folder of prepared volumes.
        patch_size_2d, patch_size_3d: voxels per axis of the views.
        folder_2d: folder of prepared images; by default slices of the volumes are used.
        input_channels_2d: input channels of the network's 2D form.
        batch_size: samples per batch and device; UniMiSS's learning rate follows it.
        samples_per_epoch: samples per epoch over all devices. By default, as in the release, one per image, and one
            per tile of volumes: 24 slices at every fourth slice, for views of 16. Slices of volumes are as many as
            tiles.
        batch_size_2d, samples_per_epoch_2d: the same of images, where they differ from those of volumes.
        period: number of consecutive epochs of images, and then of volumes.
        margin: share of a volume's height and width that is left out at either end, as far as a view fits.
        num_workers: worker processes of the loader.
        seed: seed of the samples.

    Raises:
        FileNotFoundError: as ``read_index``.
        ValueError: as ``read_index``, or if a number is out of its range.
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
        batch_size_2d: int | None = None,
        samples_per_epoch_2d: int | None = None,
        period: int = 2,
        margin: float = 0.1,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(
            batch_size=batch_size,
            batch_size_2d=batch_size_2d,
            samples_per_epoch=samples_per_epoch,
            samples_per_epoch_2d=samples_per_epoch_2d,
            period=period,
        )
        if not 0 <= margin < 0.5:
            raise ValueError(f"margin must be 0 or more and below 0.5, got {margin}")
        self.batch_size, self.num_workers, self.period = batch_size, num_workers, period
        self.batch_size_2d = batch_size_2d or batch_size
        images = None if folder_2d is None else read_index(Path(folder_2d))
        found = 1 if images is None else len(images.channels)
        if found not in (1, input_channels_2d):
            raise ValueError(
                f"the images of {folder_2d} have {found} channels, the network takes {input_channels_2d} "
                f"or repeats a grey one: set --model.init_args.input_channels_2d {found}"
            )
        self.index = replace(read_index(Path(folder_3d)), images=images)
        tiles = count_tiles(self.index, patch_size_3d[0])
        samples_2d = samples_per_epoch_2d or samples_per_epoch
        self._has_free_length = (samples_2d is None, samples_per_epoch is None)
        samples_2d = samples_2d or (tiles if images is None else len(images.cases))
        self.images = TwoViews(Path(folder_2d or folder_3d), patch_size_2d, input_channels_2d, samples_2d, seed)
        self.volumes = TwoViews(Path(folder_3d), patch_size_3d, 1, samples_per_epoch or tiles, seed, margin)

    def epoch(self) -> TwoViews:
        return self._epoch(self.attached_trainer.current_epoch)

    def _epoch(self, epoch: int) -> TwoViews:
        return (self.images, self.volumes)[epoch // self.period % 2]

    def batch_size_of(self, samples: Epoch) -> int:
        return self.batch_size_2d if samples is self.images else self.batch_size

    def is_length_free(self, samples: Epoch) -> bool:
        return self._has_free_length[samples is self.volumes]

    def count_steps(self, epochs: float) -> int:
        """Count the optimiser steps of the first epochs, which are not equally long."""

        def steps(epoch: int) -> int:
            trainer, samples = self.attached_trainer, self._epoch(epoch)
            batch_size = self.batch_size_of(samples)
            length = len(samples)
            if self.is_length_free(samples):
                length = max(length, samples_per_step(trainer, batch_size))
            batches = length // trainer.world_size // batch_size
            batches -= batches % trainer.accumulate_grad_batches  # as ``RestSampler`` leaves them
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            return -(-batches // trainer.accumulate_grad_batches)

        whole = int(epochs)
        part = (epochs - whole) * steps(whole) if epochs > whole else 0
        return round(sum(map(steps, range(whole))) + part)
