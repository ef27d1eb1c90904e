"""VolumeFusion's samples: two crops, fused in random boxes, and the class of the fusion coefficient of each voxel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .epoch import EpochData
from .epoch_samples import Epoch, check_counts
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import flip, intensity_transforms


class FusedCrops(Epoch):
    """Fused crops of two images (MIS-FM, https://arxiv.org/abs/2306.16925, section 3).

    A sample is coefficient * foreground + (1 - coefficient) * background, (channels, *patch_size), and the classes,
    (*patch_size): the coefficient is class / (num_classes - 1). It is 0 outside of the boxes; of boxes that overlap,
    the last one counts. Both crops are mirrored and changed in intensity.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop random slices.
        num_classes: number of coefficients, from 0 to 1.
        boxes: minimum and maximum number of boxes.
        edge: minimum edge of a box in voxels, and maximum edge as a share of the patch's.
        samples, seed: as for ``Epoch``.
    """

    def __init__(
        self,
        folder: Path,
        patch_size: Sequence[int],
        num_classes: int,
        boxes: tuple[int, int],
        edge: tuple[int, float],
        samples: int,
        seed: int = 0,
    ) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size, self.num_classes = PreparedImages(folder), tuple(patch_size), num_classes
        self.boxes, self.edge, self.intensity = boxes, edge, intensity_transforms()

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        foreground, background = (self._crop(rng) for _ in range(2))
        classes = self._classes(rng)
        coefficient = classes / (self.num_classes - 1)
        return coefficient * foreground + (1 - coefficient) * background, classes

    def _crop(self, rng: np.random.Generator) -> Tensor:
        crop = flip(self.images.crop(self.patch_size, rng), 0.5, range(1, 1 + len(self.patch_size)))
        return self.intensity(image=crop.contiguous())["image"]

    def _classes(self, rng: np.random.Generator) -> Tensor:
        """Draw the boxes and their classes."""
        classes = torch.zeros(self.patch_size, dtype=torch.long)
        least, share = self.edge
        for _ in range(rng.integers(self.boxes[0], self.boxes[1], endpoint=True)):
            lengths = [
                int(rng.integers(min(least, n), max(least, int(share * n)) + 1).clip(max=n)) for n in classes.shape
            ]
            starts = [rng.integers(n - length + 1) for length, n in zip(lengths, classes.shape, strict=True)]
            box = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
            classes[box] = int(rng.integers(self.num_classes))
        return classes


class FusedCropData(EpochData):
    """Data module of ``FusedCrops``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop random slices.
        num_classes: number of coefficients, from 0 to 1.
        boxes: minimum and maximum number of boxes.
        edge: minimum edge of a box in voxels, and maximum edge as a share of the patch's.
        batch_size: samples per batch and device.
        samples_per_epoch: samples per epoch over all devices; by default one per image.
        num_workers: worker processes of the loader.
        seed: seed of the samples.

    Raises:
        FileNotFoundError: as ``read_index``.
        ValueError: as ``read_index``, or if ``num_classes``, ``boxes`` or ``edge`` is out of its range.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        num_classes: int = 5,
        boxes: tuple[int, int] = (10, 39),
        edge: tuple[int, float] = (8, 0.625),
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts(least=2, num_classes=num_classes)
        if not 0 <= boxes[0] <= boxes[1]:
            raise ValueError(f"boxes must be two numbers, the lower one first, got {list(boxes)}")
        if edge[0] < 1 or not 0 < edge[1] <= 1:
            raise ValueError(f"edge must be a number of voxels and a share of at most 1, got {list(edge)}")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        samples = self.epoch_length(samples_per_epoch)
        self.crops = FusedCrops(Path(folder), patch_size, num_classes, boxes, edge, samples, seed)

    def epoch(self) -> FusedCrops:
        return self.crops
