"""UniMiSS's views: two of an image or of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from .epoch import EpochData
from .epoch_samples import Epoch
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import flip, intensity_transforms, random_resized_crop


class TwoViews(Epoch):
    """Two views of a random crop, (channels, *patch_size) each (UniMiSS, appendix and release).

    The views of a volume are taken from one crop of twice their depth and 1.4 to 1.8 times their in-plane size, as far
    as the volume extends. Each covers 0.8 to 1.2 times its in-plane size before it is resized, and is mirrored on each
    axis with probability 0.8. The views of an image or slice cover 14 to 100 % of its area and are mirrored from left
    to right with probability 0.5. All views change in intensity.

    Args:
        folder: folder of prepared images.
        patch_size: size of a view; two axes make views of slices.
        channels: number of channels; a grey image is repeated.
        samples, seed: as for ``Epoch``.
    """

    def __init__(self, folder: Path, patch_size: Sequence[int], channels: int, samples: int, seed: int = 0) -> None:
        super().__init__(samples, seed)
        self.images, self.patch_size, self.channels = PreparedImages(folder), tuple(patch_size), channels
        self.intensity = intensity_transforms()

    def sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        name = self.images.names[rng.integers(len(self.images.names))]
        shape = self.images.shapes[name][1:]
        *depth, height, width = self.patch_size
        boxes: list[tuple[float, float]] | None = None
        axes: tuple[int, ...] = (2,)
        p = 0.5
        if depth:
            scale = rng.uniform(1.4, 1.8)
            wanted = (2 * depth[0], round(scale * height), round(scale * width))
            # at most the volume, at least a view
            size = [max(p, min(w, n)) for p, w, n in zip(self.patch_size, wanted, shape, strict=True)]
            crop = self.images.crop(size, rng, name)
            boxes, axes, p = [(1.0, 1.0), (0.8, 1.2), (0.8, 1.2)], (1, 2, 3), 0.8
        else:
            crop = self.images.crop(shape[1:], rng, name)

        def view() -> Tensor:
            return self._view(crop, boxes or self._part(shape[1:], rng), axes, p)

        return view(), view()

    def _part(self, shape: Sequence[int], rng: np.random.Generator) -> list[tuple[float, float]]:
        """Draw the size of a random part of an image, the same share of both axes, as ranges in units of the view."""
        edge = rng.uniform(0.14, 1.0) ** 0.5
        return [(edge * n / s, edge * n / s) for n, s in zip(shape, self.patch_size, strict=True)]

    def _view(self, crop: Tensor, boxes: Sequence[tuple[float, float]], axes: Sequence[int], p: float) -> Tensor:
        view = flip(random_resized_crop(crop, self.patch_size, boxes), p, axes)
        view = self.intensity(image=view)["image"]
        return view.expand(self.channels, *view.shape[1:]).contiguous() if len(view) == 1 else view


class TwoViewData(EpochData):
    """Data module of ``TwoViews`` of images and of volumes, in alternating groups of epochs (UniMiSS).

    Args:
        folder_3d: folder of prepared volumes.
        patch_size_2d, patch_size_3d: voxels per axis of the views.
        folder_2d: folder of prepared images; by default slices of the volumes are used.
        input_channels_2d: input channels of the network's 2D form.
        batch_size: samples per batch and device.
        samples_per_epoch: samples per epoch over all devices; by default one per volume.
        period: number of consecutive epochs of images, and then of volumes.
        num_workers: worker processes of the loader.
        seed: seed of the samples.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``.
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
        images = None if folder_2d is None else read_index(Path(folder_2d))
        self.index = replace(read_index(Path(folder_3d)), images=images)
        samples = self.epoch_length(samples_per_epoch)
        self.images = TwoViews(Path(folder_2d or folder_3d), patch_size_2d, input_channels_2d, samples, seed)
        self.volumes = TwoViews(Path(folder_3d), patch_size_3d, 1, samples, seed)

    def epoch(self) -> TwoViews:
        return (self.images, self.volumes)[self.attached_trainer.current_epoch // self.period % 2]
