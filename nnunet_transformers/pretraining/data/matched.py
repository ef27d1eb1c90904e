"""Alice's views: of two people, where a matcher says that they show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.masked import random_mask
from ..matching.cache import CachedMatcher
from .epoch import Epoch, EpochData
from .prepared_images import PreparedImages, read_index
from .transforms import flip, intensity_transforms, rotate, rotations_of


class MatchedViews(Epoch):
    """Crops of two images around matched points, each once to hide parts of and once changed.

    A sample has, for "query" and "key", ``_masked`` and ``_intact`` views, (channels, *patch_size), the latter turned,
    mirrored and changed in intensity, and ``_mask``, boolean (*grid). ``is_matched`` is false where no match was valid,
    and the key crop is another one of the query image; ``redraws`` counts the points that had no valid match.

    Args:
        folder: prepared images.
        patch_size: voxels per axis, three of them.
        grid: cells that are hidden or not.
        mask_ratio: share of them that is hidden.
        matcher: one of ``matching.MATCHERS``.
        matcher_arguments: of the matcher.
        partners: images that an image is matched with, so that maps between pairs are computed once.
        tries: points, each with another partner, before giving up on a match.
        samples, seed: as for ``Epoch``.
    """

    def __init__(
        self,
        folder: Path,
        patch_size: Sequence[int],
        grid: Sequence[int],
        mask_ratio: float,
        matcher: str,
        matcher_arguments: Mapping[str, Any] | None,
        partners: int,
        tries: int,
        samples: int,
        seed: int = 0,
    ) -> None:
        super().__init__(samples, seed)
        self.images = PreparedImages(folder)
        if len(self.images.names) < 2:
            raise ValueError(f"{folder} has {len(self.images.names)} images; matching needs two")
        self.patch_size, self.grid, self.mask_ratio = tuple(patch_size), tuple(grid), mask_ratio
        self.matcher = CachedMatcher(self.images, matcher, matcher_arguments)
        self.partners, self.tries = partners, tries
        self.rotations = rotations_of(self.patch_size)
        self.intensity = intensity_transforms()

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        crops, redraws = self._crops(self.images.names[rng.integers(len(self.images.names))], rng)
        sample: dict[str, Any] = {"is_matched": redraws < self.tries, "redraws": redraws}
        for side, (name, at) in crops.items():
            crop = self.images.read(name, at, self.patch_size)
            sample[f"{side}_masked"] = crop
            sample[f"{side}_mask"] = torch.from_numpy(random_mask(self.grid, self.mask_ratio, rng))
            sample[f"{side}_intact"] = self._changed(crop, rng)
        return sample

    def _crops(self, query: str, rng: np.random.Generator) -> tuple[dict[str, tuple[str, list[int]]], int]:
        """Image and first voxel of either crop, and how many points had no valid match before."""
        for redraws in range(self.tries):
            start = self._random_start(query, rng)
            key = self._partner(query, rng)
            match = self.matcher.match(query, key, self._centre(start)[None])
            if match.valid[0]:
                return {"query": (query, start), "key": (key, self._start(key, match.points[0]))}, redraws
        return {"query": (query, start), "key": (query, self._random_start(query, rng))}, self.tries

    def _changed(self, crop: Tensor, rng: np.random.Generator) -> Tensor:
        turned = rotate(crop, self.rotations[rng.integers(len(self.rotations))])
        return self.intensity(image=flip(turned, 0.5, (1, 2, 3)).contiguous())["image"]

    def _partner(self, query: str, rng: np.random.Generator) -> str:
        """One of an image's partners, which are the same throughout a run."""
        others = [name for name in self.images.names if name != query]
        own = np.random.default_rng((self.seed, self.images.names.index(query))).permutation(len(others))
        return others[own[rng.integers(min(self.partners, len(others)))]]

    def _random_start(self, name: str, rng: np.random.Generator) -> list[int]:
        size = self.images.shapes[name][1:]
        return [int(rng.integers(max(0, n - p) + 1)) for n, p in zip(size, self.patch_size, strict=True)]

    def _centre(self, start: Sequence[int]) -> NDArray:
        """mm of a crop's middle."""
        return (np.array(start) + (np.array(self.patch_size) - 1) / 2) * self.matcher.spacing

    def _start(self, name: str, centre: NDArray) -> list[int]:
        """First voxel of the crop around a point in mm, moved into the image."""
        size = np.array(self.images.shapes[name][1:])
        start = np.round(centre / self.matcher.spacing - (np.array(self.patch_size) - 1) / 2)
        return np.clip(start, 0, np.maximum(0, size - self.patch_size)).astype(int).tolist()


class MatchedViewData(EpochData):
    """Batches of matched views.

    Args:
        folder: prepared images.
        patch_size: voxels per axis.
        mask_ratio: share of the cells that is hidden.
        matcher: "identity", "affine", "embedding", "hybrid" or "precomputed".
        matcher_arguments: of the matcher, such as ``{"weights": "matcher.pth"}``.
        partners: images that an image is matched with.
        tries: points before giving up on a match.
        batch_size: pairs in a batch, on each device.
        samples_per_epoch: pairs in an epoch, on all devices; as many as there are images by default.
        num_workers: processes that read.
        seed: of the views.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        mask_ratio: float = 0.75,
        matcher: str = "hybrid",
        matcher_arguments: dict[str, Any] | None = None,
        partners: int = 8,
        tries: int = 4,
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        self.settings = {
            "folder": Path(folder),
            "patch_size": patch_size,
            "mask_ratio": mask_ratio,
            "matcher": matcher,
            "matcher_arguments": matcher_arguments,
            "partners": partners,
            "tries": tries,
            "samples": samples_per_epoch or len(self.index["cases"]),
            "seed": seed,
        }
        self.views: MatchedViews | None = None

    def epoch(self) -> MatchedViews:
        # the cells that are hidden are those of the method's encoder
        if self.views is None:
            self.views = MatchedViews(grid=self.trainer.lightning_module.encoder.grid, **self.settings)
        return self.views
