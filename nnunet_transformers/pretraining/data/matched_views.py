"""Alice's views: crops of two subjects around matched points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..encoders.masked import check_mask_ratio, random_mask
from .cached_matcher import CachedMatcher
from .epoch import EpochData, hold_out
from .epoch_samples import Epoch, check_counts, check_is_3d
from .index import read_index
from .prepared_images import PreparedImages
from .transforms import flip, intensity_transforms, random_resized_crop, rotate, rotations_of, uniform


class MatchedViews(Epoch):
    """Crops of two images around matched points, each as a masked and as an augmented view (Alice, section 3).

    A sample has the entries

    - ``query_masked``, ``key_masked``: the crops, (channels, *patch_size), and ``query_mask``, ``key_mask``: boolean
      (*grid), true for masked cells;
    - ``query_intact``, ``key_intact``: the same crops, rotated, mirrored and changed in intensity, and with
      ``target_mask_ratio`` their masks, ``query_target_mask`` and ``key_target_mask``;
    - ``is_matched``: false if no match was valid; the key is then another crop of the query image;
    - ``redraws``: number of points without a valid match.

    A match is valid if the matcher says so and the crop around it lies in the key image, but for ``max_shift``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis, three axes.
        grid: cells per axis that are masked or visible.
        mask_ratio: share of masked cells.
        matcher: one of ``matching.MATCHERS``.
        matcher_arguments: arguments of the matcher.
        partners: number of images that an image is matched with; few partners limit the pairs to register.
        tries: maximum number of points to match, each with a random partner.
        samples, seed: as for ``Epoch``.
        cache: folder of the matcher's features and maps, see ``CachedMatcher``.
        names: images to draw from; by default all of the folder.
        target_mask_ratio: share of masked cells of the intact views.
        augment_masked: resize a random part of 20 to 100 % of the volume of the masked view, and mirror it from left
            to right with probability 0.5, as MAE does.
        max_shift: largest shift of the key's crop into its image, in edges of the crop.

    Raises:
        ValueError: if there are fewer than two images, there is no such matcher, patch or images are 2D, all cells
            would be masked, or none, or ``partners`` or ``tries`` is less than one.
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
        cache: Path | None = None,
        names: Sequence[str] | None = None,
        target_mask_ratio: float = 0.0,
        augment_masked: bool = False,
        max_shift: float = 0.125,
    ) -> None:
        super().__init__(samples, seed)
        self.images = PreparedImages(folder, names)
        check_is_3d(patch_size, self.images.index)
        check_counts(partners=partners, tries=tries)
        remedy = "enlarge --model.init_args.patch_size for more cells"
        check_mask_ratio(tuple(grid), mask_ratio, "mask_ratio", remedy)
        if target_mask_ratio:
            check_mask_ratio(tuple(grid), target_mask_ratio, "target_mask_ratio", remedy)
        if len(self.images.names) < 2:
            raise ValueError(f"{folder} has {len(self.images.names)} images; matching needs two")
        self.patch_size, self.grid, self.mask_ratio = tuple(patch_size), tuple(grid), mask_ratio
        self.matcher = CachedMatcher(self.images, matcher, matcher_arguments, cache)
        self.partners, self.tries = partners, tries
        self.target_mask_ratio, self.augment_masked, self.max_shift = target_mask_ratio, augment_masked, max_shift
        self.rotations = rotations_of(self.patch_size)
        self.intensity = intensity_transforms()

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        crops, redraws = self._crops(self.images.names[rng.integers(len(self.images.names))], rng)
        sample: dict[str, Any] = {"is_matched": redraws < self.tries, "redraws": redraws}
        for side, (name, start) in crops.items():
            crop = self.images.read(name, start, self.patch_size)
            sample[f"{side}_masked"] = self._as_mae(crop) if self.augment_masked else crop
            sample[f"{side}_mask"] = torch.from_numpy(random_mask(self.grid, self.mask_ratio, rng))
            sample[f"{side}_intact"] = self._augment(crop, rng)
            if self.target_mask_ratio:
                sample[f"{side}_target_mask"] = torch.from_numpy(random_mask(self.grid, self.target_mask_ratio, rng))
        return sample

    def _crops(self, query: str, rng: np.random.Generator) -> tuple[dict[str, tuple[str, list[int]]], int]:
        """Draw a pair of crops.

        Returns:
            image name and first voxel of the query and of the key, and the number of points without a valid match.
        """
        for redraws in range(self.tries):
            start = self._random_start(query, rng)
            key = self._partner(query, rng)
            match = self.matcher.match(query, key, self._centre(query, start)[None])
            place = self._start(key, match.points[0]) if match.valid[0] else None
            if place is not None:
                return {"query": (query, start), "key": (key, place)}, redraws
        return {"query": (query, start), "key": (query, self._random_start(query, rng))}, self.tries

    def _as_mae(self, crop: Tensor) -> Tensor:
        edge = uniform(0.2, 1.0) ** (1 / 3)
        return flip(random_resized_crop(crop, self.patch_size, [(edge, edge)] * 3), 0.5, (3,))

    def _augment(self, crop: Tensor, rng: np.random.Generator) -> Tensor:
        rotated = rotate(crop, self.rotations[rng.integers(len(self.rotations))])
        return self.intensity(image=flip(rotated, 0.5, (1, 2, 3)).contiguous())["image"]

    def _partner(self, query: str, rng: np.random.Generator) -> str:
        """Draw one of an image's partners, which are the same throughout a run."""
        others = [name for name in self.images.names if name != query]
        own = np.random.default_rng((self.seed, self.images.names.index(query))).permutation(len(others))
        return others[own[rng.integers(min(self.partners, len(others)))]]

    def _random_start(self, name: str, rng: np.random.Generator) -> list[int]:
        size = self.images.shapes[name][1:]
        return [int(rng.integers(max(0, n - p) + 1)) for n, p in zip(size, self.patch_size, strict=True)]

    def _covered(self, name: str) -> NDArray:
        """Voxels of the image that a crop covers on each axis; the rest of it is padding, on both sides."""
        return np.minimum(self.images.shapes[name][1:], self.patch_size)

    def _centre(self, name: str, start: Sequence[int]) -> NDArray:
        """Return a crop's centre in mm."""
        return (np.array(start) + (self._covered(name) - 1) / 2) * self.matcher.spacing

    def _start(self, name: str, centre: NDArray) -> list[int] | None:
        """Return the first voxel of the crop around a point in mm; None if it would have to be shifted too far.

        An axis on which the crop covers the whole image shows the point wherever it is.
        """
        size = np.array(self.images.shapes[name][1:])
        start = np.round(centre / self.matcher.spacing - (self._covered(name) - 1) / 2)
        placed = np.clip(start, 0, np.maximum(0, size - self.patch_size)).astype(int)
        is_far = np.abs(placed - start) > self.max_shift * np.array(self.patch_size)
        return None if (is_far & (size > self.patch_size)).any() else placed.tolist()


class MatchedViewData(EpochData):
    """Data module of ``MatchedViews``.

    Args:
        folder: folder of prepared images.
        patch_size: voxels per axis.
        grid: cells per axis that are masked or visible; the command line takes them from the method's
            ``encoder.grid``.
        mask_ratio: share of masked cells.
        matcher: "identity", "affine", "embedding", "hybrid" or "precomputed".
        matcher_arguments: arguments of the matcher, such as ``{"weights": "matcher.pth"}``.
        partners: number of images that an image is matched with.
        tries: maximum number of points to match.
        batch_size: pairs per batch and device.
        samples_per_epoch: pairs per epoch over all devices; by default one per image.
        num_workers: worker processes of the loader.
        seed: seed of the samples.
        cache: folder of the matcher's features and maps; by default FOLDER.matching beside the folder of the images.
        target_mask_ratio, augment_masked, max_shift: as for ``MatchedViews``.
        val_images: images held out for a validation loss, a number or a share below 1; fewer than two are none.

    Raises:
        FileNotFoundError: if the folder was not prepared.
        ValueError: as ``MatchedViews``.
    """

    def __init__(
        self,
        folder: str,
        patch_size: Sequence[int],
        grid: Sequence[int],
        mask_ratio: float = 0.75,
        matcher: str = "hybrid",
        matcher_arguments: dict[str, Any] | None = None,
        partners: int = 8,
        tries: int = 4,
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        cache: str | None = None,
        target_mask_ratio: float = 0.0,
        augment_masked: bool = False,
        max_shift: float = 0.125,
        val_images: float = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers
        self.index = read_index(Path(folder))
        training, others = hold_out([case.name for case in self.index.cases], val_images, seed, fewest=2)
        self.index = self.index.only(training)

        def views(names: Sequence[str], samples: int) -> MatchedViews:
            return MatchedViews(
                Path(folder),
                patch_size,
                grid,
                mask_ratio,
                matcher,
                matcher_arguments,
                partners,
                tries,
                samples,
                seed,
                None if cache is None else Path(cache),
                names,
                target_mask_ratio,
                augment_masked,
                max_shift,
            )

        self.views = views(training, self.epoch_length(samples_per_epoch, len(training)))
        self.held_out = views(others, len(others)) if others else None

    def epoch(self) -> MatchedViews:
        return self.views
