"""UniMiSS's views: of images and of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .epoch import Epoch, EpochData
from .prepared_images import PreparedImages, read_index
from .transforms import flip, intensity_transforms, random_resized_crop


class TwoViews(Epoch):
    """Two views of a random crop, (channels, *patch_size) each (UniMiSS appendix and release).

    A volume's views lie in one crop of twice their depth and 1.4 to 1.8 times their size in-plane, or of the volume's
    size where that is smaller; each is 0.8 to 1.2 times its size in-plane before it is resized, and may be mirrored on
    each axis. An image's, or a slice's, hold 0.14 to 1 of it by area and may be mirrored from left to right. Both
    change in intensity.

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
        name = self.images.names[rng.integers(len(self.images.names))]
        shape = self.images.shapes[name][1:]
        *depth, height, width = self.patch_size
        if depth:
            scale = rng.uniform(1.4, 1.8)
            wanted = (2 * depth[0], round(scale * height), round(scale * width))
            # beyond the volume there is nothing to see, but a view must not be larger than its crop
            size = [max(p, min(w, n)) for p, w, n in zip(self.patch_size, wanted, shape, strict=True)]
            crop = self.images.crop(size, rng, name)
            boxes, axes, p = [(1.0, 1.0), (0.8, 1.2), (0.8, 1.2)], (1, 2, 3), 0.8
        else:
            crop = self.images.crop(shape[1:], rng, name)
            boxes, axes, p = None, (2,), 0.5
        return tuple(self._view(crop, boxes or self._part(shape[1:], rng), axes, p) for _ in range(2))

    def _part(self, shape: Sequence[int], rng: np.random.Generator) -> list[tuple[float, float]]:
        """Edges of a part of an image, as it is in both axes, in units of the view."""
        edge = rng.uniform(0.14, 1.0) ** 0.5
        return [(edge * n / s, edge * n / s) for n, s in zip(shape, self.patch_size, strict=True)]

    def _view(self, crop: Tensor, boxes: Sequence[tuple[float, float]], axes: Sequence[int], p: float) -> Tensor:
        view = flip(random_resized_crop(crop, self.patch_size, boxes), p, axes)
        view = self.intensity(image=view)["image"]
        return view.expand(self.channels, *view.shape[1:]).contiguous() if len(view) == 1 else view


class ViewData(EpochData):
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
        if folder_2d is not None:
            self.index["images"] = read_index(Path(folder_2d))
        samples = samples_per_epoch or len(self.index["cases"])
        self.images = TwoViews(Path(folder_2d or folder_3d), patch_size_2d, input_channels_2d, samples, seed)
        self.volumes = TwoViews(Path(folder_3d), patch_size_3d, 1, samples, seed)

    def epoch(self) -> TwoViews:
        return (self.images, self.volumes)[self.trainer.current_epoch // self.period % 2]
