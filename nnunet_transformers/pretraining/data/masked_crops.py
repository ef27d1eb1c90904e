"""MAE's samples: crops, and the cells to mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders.masked import check_mask_ratio, random_mask
from .epoch import EpochData
from .epoch_samples import Epoch
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import spatial_transforms


class MaskedCrops(Epoch):
    """Random crops, rotated, scaled and mirrored as in nnU-Net, with random masks.

    A sample is the crop, (channels, *patch_size), and the boolean mask, (*grid), true for masked cells.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop a random slice.
        grid: cells per axis that are masked or visible.
        mask_ratio: share of masked cells.
        samples, seed: as for ``Epoch``.

    Raises:
        ValueError: if all cells would be masked, or none.
    """

    def __init__(
        self,
        folder: Path,
        patch_size: Sequence[int],
        grid: Sequence[int],
        mask_ratio: float,
        samples: int,
        seed: int = 0,
    ) -> None:
        super().__init__(samples, seed)
        self.images, self.grid, self.mask_ratio = PreparedImages(folder), tuple(grid), mask_ratio
        check_mask_ratio(self.grid, mask_ratio, "mask_ratio", "lower --model.init_args.mask_size for smaller cells")
        self.patch_size = tuple(patch_size)
        self.spatial, self.taken = spatial_transforms(patch_size)

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        image = self.images.crop_with_surroundings(self.patch_size, self.taken, rng)
        crop = self.spatial(image=image)["image"].contiguous()
        return crop, torch.from_numpy(random_mask(self.grid, self.mask_ratio, rng))


class MaskedCropData(EpochData):
    """Data module of ``MaskedCrops``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop a random slice.
        grid: cells per axis that are masked or visible; the command line takes them from the method's
            ``encoder.grid``.
        mask_ratio: share of masked cells.
        batch_size: crops per batch and device.
        samples_per_epoch: crops per epoch over all devices; by default one per image.
        num_workers: worker processes of the loader.
        seed: seed of the samples.

    Raises:
        FileNotFoundError: if the folder was not prepared.
        ValueError: as ``MaskedCrops``.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        grid: Sequence[int],
        mask_ratio: float = 0.75,
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        samples = self.epoch_length(samples_per_epoch)
        self.crops = MaskedCrops(Path(folder), patch_size, grid, mask_ratio, samples, seed)

    def epoch(self) -> MaskedCrops:
        return self.crops
