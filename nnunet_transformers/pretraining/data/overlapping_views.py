"""Views for the anatomical embedding: overlapping crops with known positions (SAM)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .epoch import EpochData
from .epoch_samples import Epoch, check_is_3d
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import intensity_transforms

SCALE = (0.8, 1.2)


class OverlappingViews(Epoch):
    """Two overlapping views of a random volume, each scaled and changed in intensity by itself (SAM, section 3.1).

    A sample has two entries (view, frame, volume). A view is (1, *patch_size), the mean over the channels. A frame is
    (2, 3): first voxel of the view, and step from one voxel to the next, in voxels of the volume at ``spacing``. The
    volume is its number among the images, by which a batch knows two samples of one.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis of a view.
        samples, seed: as for ``Epoch``.
        spacing: mm per voxel of a view of scale 1, on axes where the volumes are finer; None keeps theirs.

    Raises:
        ValueError: if patch or images are 2D.

    Attributes:
        step: voxels of the volumes per voxel of a view of scale 1, three axes.
    """

    def __init__(
        self, folder: Path, patch_size: Sequence[int], samples: int, seed: int = 0, spacing: float | None = None
    ) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size = PreparedImages(folder), tuple(patch_size)
        check_is_3d(patch_size, self.images.index)
        own = None if spacing is None else np.array(self.images.index.spacing_of(3))
        self.step = np.ones(3) if own is None else np.maximum(1.0, spacing / own)
        self.intensity = intensity_transforms()

    def sample(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor, int], ...]:
        number = int(rng.integers(len(self.images.names)))
        name = self.images.names[number]
        size = np.array(self.images.shapes[name][1:])
        centre = rng.uniform(0.0, 1.0, 3) * size
        return tuple((*self._view(name, size, centre, rng), number) for _ in range(2))

    def _view(self, name: str, size: NDArray, centre: NDArray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Cut a view whose centre is at most a quarter of its size from ``centre``, inside the volume if possible."""
        patch = np.array(self.patch_size)
        scale = rng.uniform(*SCALE, 3) * self.step
        length = np.maximum(np.round(patch * scale).astype(int), 2)
        start = np.round(centre + rng.uniform(-0.25, 0.25, 3) * length - length / 2).astype(int)
        start = np.clip(start, np.minimum(0, size - length), np.maximum(0, size - length))
        crop = self.images.read_beyond(name, start.tolist(), length.tolist()).mean(0, keepdim=True)
        view = F.interpolate(crop[None], size=self.patch_size, mode="trilinear", align_corners=True)[0]
        frame = np.stack([start, (length - 1) / np.maximum(patch - 1, 1)]) / self.step
        return self.intensity(image=view)["image"], torch.from_numpy(frame).float()


class OverlappingViewData(EpochData):
    """Data module of ``OverlappingViews``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis of a view.
        batch_size: pairs per batch and device.
        samples_per_epoch: pairs per epoch over all devices; by default one per image.
        num_workers: worker processes of the loader.
        seed: seed of the samples.
        spacing: mm per voxel of a view on axes where the volumes are finer; None keeps theirs, for small organs.

    Attributes:
        spacing: mm per voxel and axis of a view of scale 1; None if the images have none.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        batch_size: int = 4,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        spacing: float | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        self.views = OverlappingViews(Path(folder), patch_size, self.epoch_length(samples_per_epoch), seed, spacing)
        own = self.index.spacing
        self.spacing = None if own is None else tuple((np.array(own[-3:]) * self.views.step[-len(own) :]).tolist())

    def epoch(self) -> OverlappingViews:
        return self.views
