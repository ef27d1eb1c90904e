"""QT-UNet's views: rotated crops with boxes of noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .epoch import EpochData, hold_out
from .epoch_samples import Epoch
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import cut_out, rotate, rotations_of


class MaskedViews(Epoch):
    """Two views of a random crop, rotated by right angles, with boxes of noise (QT-UNet thesis, section 3.3.12).

    A sample has two entries (view, reconstruction target, index of the rotation in ``rotations_of``); view and target
    are (channels, *patch_size).

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop a random slice.
        samples, seed: as for ``Epoch``.
        box_edge: as ``edge`` of ``cut_out``.
        names: images to draw from; by default all of the folder.
    """

    def __init__(
        self,
        folder: Path,
        patch_size: Sequence[int],
        samples: int,
        seed: int = 0,
        box_edge: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(samples, seed)
        self.box_edge = box_edge
        self.images, self.patch_size = PreparedImages(folder, names), tuple(patch_size)
        self.rotations = rotations_of(self.patch_size)

    def sample(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor, int], ...]:
        crop = self.images.crop(self.patch_size, rng)
        return tuple(self._view(crop, int(rng.integers(len(self.rotations)))) for _ in range(2))

    def _view(self, crop: Tensor, turn: int) -> tuple[Tensor, Tensor, int]:
        target = rotate(crop, self.rotations[turn]).contiguous()
        return cut_out(target, edge=self.box_edge), target, turn


class MaskedViewData(EpochData):
    """Data module of ``MaskedViews``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis; two axes crop a random slice.
        batch_size: crops per batch and device.
        samples_per_epoch: crops per epoch over all devices; by default one per image.
        num_workers: worker processes of the loader.
        seed: seed of the samples.
        box_edge: minimum and maximum edge of a box of noise in voxels; by default a third to two thirds of the patch.
        val_images: images held out for a validation loss, a number or a share below 1.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``; if ``box_edge`` is no range.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        box_edge: tuple[int, int] | None = None,
        val_images: float = 0,
    ) -> None:
        super().__init__()
        if box_edge is not None and not 1 <= box_edge[0] <= box_edge[1]:
            raise ValueError(f"box_edge must be two numbers of voxels, the lower one first, got {list(box_edge)}")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        training, others = hold_out([case.name for case in self.index.cases], val_images, seed)
        self.index = self.index.only(training)
        samples = self.epoch_length(samples_per_epoch, len(training))
        self.views = MaskedViews(Path(folder), patch_size, samples, seed, box_edge, training)
        if others:
            self.held_out = MaskedViews(Path(folder), patch_size, len(others), seed, box_edge, others)

    def epoch(self) -> MaskedViews:
        return self.views
