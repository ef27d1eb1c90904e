"""Labelled images for training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..pretraining.data import EpochData, PreparedImages, ShuffledEpoch
from .image_views import Augmentation, ImageViews
from .labels import LabelledImages, read_labels


class LabelledCrops(ShuffledEpoch):
    """A random crop of each image, once an epoch.

    A sample is the crop, (channels, *patch_size), and its targets, (classes,).

    Args:
        images: prepared images.
        names: of those to take.
        targets: of each, (images, classes), 0 or 1, NaN where unknown.
        views: how an image is seen.
        augmentation: random changes.
        seed: as for ``Epoch``.
    """

    def __init__(
        self,
        images: PreparedImages,
        names: Sequence[str],
        targets: NDArray,
        views: ImageViews,
        augmentation: Augmentation,
        seed: int = 0,
    ) -> None:
        super().__init__(len(names), seed)
        self.images, self.names, self.targets = images, list(names), torch.from_numpy(targets)
        self.views, self.augmentation = views, augmentation
        self.transform = augmentation.transform(views.patch_size)

    def sample(self, rng: np.random.Generator, number: int | None = None) -> tuple[Tensor, Tensor]:
        number = int(rng.integers(len(self.names))) if number is None else number
        crop = self.views.crop(self.images, self.names[number], rng)
        return self.augmentation.apply(crop, self.transform), self.targets[number]


class LabelledParts(Dataset):
    """What is seen of each image after training: its number and its parts, (parts, channels, *patch_size)."""

    def __init__(self, images: PreparedImages, names: Sequence[str], views: ImageViews) -> None:
        self.images, self.names, self.views = images, list(names), views

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.stack(list(self.views.parts(self.images, self.names[index])))


class ClassificationData(EpochData):
    """Batches of crops of labelled images, and whole images to validate on.

    Args:
        folder: prepared images.
        table: CSV file, see ``read_labels``.
        labels: columns of labels; several say each whether an image has it.
        train_share: of the images to train on, drawn evenly from the classes; validation keeps all of its own.
        val_share: of the images that are not to test on, to validate on, where the table has no ``val``.
        canvas, keep_aspect, intensity_range, tiles: see ``ImageViews``.
        intensity, flips, rotation, zoom: see ``Augmentation``.
        batch_size: crops in a batch, on each device.
        num_workers: processes that read.
        seed: of splits, crops and augmentation.

    Attributes:
        columns: of labels.
        classes: names, in the order of the network's outputs.
        multi_label: whether an image can have several at once.
        train_targets, val_targets: (images, classes).

    Raises:
        ValueError: if the table cannot be used, a class is missing in training, or settings contradict each other.
        FileNotFoundError: if the folder was not prepared or there is no table.
    """

    def __init__(
        self,
        folder: str,
        table: str,
        labels: Sequence[str] = ("label",),
        train_share: float = 1.0,
        val_share: float = 0.2,
        canvas: Sequence[int] | None = None,
        keep_aspect: bool = True,
        intensity_range: tuple[float, float] | None = None,
        tiles: bool = True,
        intensity: bool = True,
        flips: Sequence[int] = (),
        rotation: float = 0.0,
        zoom: tuple[float, float] = (1.0, 1.0),
        batch_size: int = 8,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.images = PreparedImages(Path(folder))
        self.index = self.images.index
        labelled = read_labels(Path(table), self.images.names, labels)
        self.columns, self.multi_label, self.classes = labelled.columns, labelled.multi_label, labelled.classes()
        if len(self.classes) < 2:
            raise ValueError(f"all images in {table} have the label {self.classes[0]!r}; a classifier needs two")
        self.names, self.unknown = np.array(labelled.names), labelled.unknown
        self.targets = labelled.targets(self.classes)
        training, self.val_numbers = split_numbers(labelled, self.targets, val_share, seed)
        self.train_numbers = _share(training, self.targets, self.multi_label, train_share, seed)
        self._check_classes(table)
        self.shown = {
            "canvas": None if canvas is None else tuple(canvas),
            "keep_aspect": keep_aspect,
            "intensity_range": None if intensity_range is None else tuple(intensity_range),
            "tiles": tiles,
        }
        self.augmentation = Augmentation(intensity, tuple(flips), rotation, tuple(zoom))

    @property
    def train_targets(self) -> NDArray:
        return self.targets[self.train_numbers]

    @property
    def val_targets(self) -> NDArray:
        return self.targets[self.val_numbers]

    def _check_classes(self, table: str) -> None:
        """A class without examples cannot be learnt, and says so now."""
        for name, target in zip(self.classes, self.train_targets.T, strict=True):
            if not (target == 1).any() or not (target == 0).any():
                kinds = f"only images {'with' if (target == 1).any() else 'without'} it"
                raise ValueError(f"training images of {table} cannot teach {name!r}: there are {kinds}")

    def views(self, patch_size: Sequence[int], input_channels: int) -> ImageViews:
        """How a network sees the images.

        Raises:
            ValueError: if it cannot.
        """
        views = ImageViews(tuple(patch_size), input_channels, **self.shown)
        views.check(self.index)
        return views

    def setup(self, stage: str) -> None:
        module = self.trainer.lightning_module
        views = self.views(module.description.patch_size, module.description.input_channels)
        names = self.names[self.train_numbers]
        self.training = LabelledCrops(self.images, names, self.train_targets, views, self.augmentation, self.seed)
        self.validation = LabelledParts(self.images, self.names[self.val_numbers], views)
        rank_zero_info(self.summary())

    def summary(self) -> str:
        """Numbers of images, of each class."""
        counts = ", ".join(
            f"{name} {int((t == 1).sum())} and {int((v == 1).sum())}"
            for name, t, v in zip(self.classes, self.train_targets.T, self.val_targets.T, strict=True)
        )
        text = f"{len(self.train_numbers)} images to train on, {len(self.val_numbers)} to validate on ({counts})"
        more = (
            f"; {len(self.unknown)} of the table are not in the folder, {self.unknown[0]} first" if self.unknown else ""
        )
        return text + more

    def epoch(self) -> LabelledCrops:
        return self.training

    def val_dataloader(self) -> DataLoader[Any]:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.validation, world, rank, shuffle=False)
        return DataLoader(self.validation, batch_size=None, sampler=sampler, num_workers=self.num_workers)


def split_numbers(labelled: LabelledImages, targets: NDArray, val_share: float, seed: int) -> tuple[NDArray, NDArray]:
    """Which images to train and which to validate on.

    Args:
        labelled: the table.
        targets: (images, classes).
        val_share: of those that are not to test on, where the table has no ``val``; of each class alike.
        seed: of the draw.

    Raises:
        ValueError: if nothing is left for either, or a class has fewer than two images to draw from.
    """
    split = np.full(len(targets), "train") if labelled.split is None else labelled.split
    training, validation = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    if not len(training):
        raise ValueError("column split says train of no image that was prepared")
    if len(validation):
        return training, validation
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
    return _draw(training, targets, labelled.multi_label, val_share, seed)


def _share(numbers: NDArray, targets: NDArray, multi_label: bool, share: float, seed: int) -> NDArray:
    if not 0 < share <= 1:
        raise ValueError(f"train_share must be above 0 and at most 1, got {share}")
    return numbers if share == 1 else _draw(numbers, targets, multi_label, share, seed)[1]


def _draw(numbers: NDArray, targets: NDArray, multi_label: bool, share: float, seed: int) -> tuple[NDArray, NDArray]:
    """The rest and a share, each with all classes; several labels at once have no classes to draw from evenly."""
    strata = None if multi_label else targets[numbers].argmax(1)
    try:
        rest, drawn = train_test_split(numbers, test_size=share, random_state=seed, stratify=strata)
    except ValueError as error:
        raise ValueError(
            f"cannot draw a share of {share:g} from {len(numbers)} images evenly ({error}); take another one, or say "
            "it in a column split (train, val, test)"
        ) from error
    return np.sort(rest), np.sort(drawn)
