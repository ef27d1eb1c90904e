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
from torch.utils.data import DataLoader, Dataset

from .._text import printable
from ..pretraining.data import EpochData, PreparedImages, ShuffledEpoch
from .augmentation import Augmentation
from .crops import ImageCrops
from .labels import LabelledImages, read_labels, read_uncertain, unknown_note


class LabelledCrops(ShuffledEpoch):
    """Random augmented crops for training, one of each image per epoch.

    A sample is a crop, (channels, *patch_size), and its targets, (classes,).

    Args:
        images: prepared images.
        names: names of the images to use.
        targets: (images, classes), 0 or 1, NaN where unknown.
        crops: settings of the crops.
        augmentation: settings of the augmentation.
        seed: as for ``Epoch``.
    """

    def __init__(
        self,
        images: PreparedImages,
        names: Sequence[str],
        targets: NDArray,
        crops: ImageCrops,
        augmentation: Augmentation,
        seed: int = 0,
    ) -> None:
        super().__init__(len(names), seed)
        self.images, self.names, self.targets = images, list(names), torch.from_numpy(targets)
        self.crops, self.augmentation = crops, augmentation
        self.transform = augmentation.transform(crops.patch_size)

    def sample(self, rng: np.random.Generator, number: int | None = None) -> tuple[Tensor, Tensor]:
        number = int(rng.integers(len(self.names))) if number is None else number
        crop = self.crops.random_crop(self.images, self.names[number], rng)
        return self.augmentation.apply(crop, self.transform), self.targets[number]


class EvaluationCrops(Dataset):
    """Evaluation crops of each image; a sample is the image's number and its (crops, channels, *patch_size).

    Args:
        images: prepared images.
        names: names of the images to use.
        crops: settings of the crops.
    """

    def __init__(self, images: PreparedImages, names: Sequence[str], crops: ImageCrops) -> None:
        self.images, self.names, self.crops = images, list(names), crops

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, torch.stack(list(self.crops.evaluation_crops(self.images, self.names[index])))


class ClassificationData(EpochData):
    """Batches of crops of labelled images, and whole images to validate on.

    Args:
        folder: prepared images.
        table: CSV file, see ``read_labels``.
        patch_size: voxels per axis of the network's input; a recipe takes it from the method.
        input_channels: channels of the network's input; a recipe takes them from the method.
        labels: label columns; each of several columns states whether an image has that label.
        uncertain: what the label -1 becomes, see ``read_uncertain``.
        train_share: share of the training images to use, stratified by class; validation keeps all of its images.
        val_share: share of the images outside the test split to validate on, if the table has no ``val``.
        canvas, keep_aspect, intensity_range, tiles, evaluation_canvas, intensity_mean_std: see ``ImageCrops``.
        intensity, flips, rotation, zoom, elastic, low_resolution: see ``Augmentation``.
        batch_size: crops per batch and device.
        num_workers: worker processes that read.
        seed: seed of splits, crops and augmentation.

    Attributes:
        columns: label columns.
        classes: class names, in the order of the network's outputs.
        uncertain: what the label -1 of each column becomes; empty if it is refused.
        multi_label: whether an image can have several labels at once.
        train_targets, val_targets: (images, classes).
        crops: settings of the crops.

    Raises:
        ValueError: if the table cannot be used, a class is missing in training, or the settings contradict each other
            or the images.
        FileNotFoundError: if the folder was not prepared or there is no table.
    """

    def __init__(
        self,
        folder: str,
        table: str,
        patch_size: Sequence[int],
        input_channels: int = 1,
        labels: Sequence[str] = ("label",),
        uncertain: str | None = None,
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
        evaluation_canvas: Sequence[int] | None = None,
        intensity_mean_std: tuple[float, float] | None = None,
        elastic: float = 0.0,
        low_resolution: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.images = PreparedImages(Path(folder))
        self.index = self.images.index
        self.uncertain = read_uncertain(uncertain, labels)
        labelled = read_labels(Path(table), self.images.names, labels, self.images.files, self.uncertain)
        self.columns, self.multi_label, self.classes = labelled.columns, labelled.multi_label, labelled.classes()
        if len(self.classes) < 2:
            raise ValueError(f"all images in {table} have the label {self.classes[0]!r}; a classifier needs two")
        self.names, self.unknown = np.array(labelled.names), labelled.unknown
        self.targets = labelled.targets(self.classes)
        training, self.val_numbers = split_numbers(labelled, self.targets, val_share, seed)
        self.train_numbers = draw_share(training, self.targets, self.multi_label, train_share, seed)
        self._check_classes(table)
        self.crops = ImageCrops(
            tuple(patch_size),
            input_channels,
            canvas=None if canvas is None else tuple(canvas),
            keep_aspect=keep_aspect,
            # a configuration file has lists
            intensity_range=None if intensity_range is None else (intensity_range[0], intensity_range[1]),
            tiles=tiles,
            evaluation_canvas=None if evaluation_canvas is None else tuple(evaluation_canvas),
            intensity_mean_std=None if intensity_mean_std is None else (intensity_mean_std[0], intensity_mean_std[1]),
        )
        self.crops.check(self.index)
        self.augmentation = Augmentation(intensity, tuple(flips), rotation, (zoom[0], zoom[1]), elastic, low_resolution)

    @property
    def train_targets(self) -> NDArray:
        """Targets of the training images, (images, classes)."""
        return self.targets[self.train_numbers]

    @property
    def val_targets(self) -> NDArray:
        """Targets of the validation images, (images, classes)."""
        return self.targets[self.val_numbers]

    def _check_classes(self, table: str) -> None:
        """Raise ValueError if training lacks an example or a counterexample of a class, or validation has no label."""
        for name, target in zip(self.classes, self.train_targets.T, strict=True):
            if not (target == 1).any() or not (target == 0).any():
                presence = "have" if (target == 1).any() else "lack"
                raise ValueError(f"class {name!r} cannot be learned: all training images of {table} {presence} it")
        if np.isnan(self.val_targets).all():
            raise ValueError(f"no label of the {len(self.val_targets)} validation images of {table} is known")

    def setup(self, stage: str) -> None:
        names = self.names[self.train_numbers]
        self.training = LabelledCrops(self.images, names, self.train_targets, self.crops, self.augmentation, self.seed)
        self.validation = EvaluationCrops(self.images, self.names[self.val_numbers], self.crops)
        rank_zero_info(printable(self.summary()))

    def summary(self) -> str:
        """Count the images of each split and class, and the images of the table that were not prepared."""
        counts = ", ".join(
            f"{name} {int((t == 1).sum())} and {int((v == 1).sum())}"
            for name, t, v in zip(self.classes, self.train_targets.T, self.val_targets.T, strict=True)
        )
        text = f"{len(self.train_numbers)} images to train on, {len(self.val_numbers)} to validate on ({counts})"
        return "; ".join(filter(None, (text, unknown_note(self.unknown))))

    def epoch(self) -> LabelledCrops:
        return self.training

    def val_dataloader(self) -> DataLoader[Any]:
        sampler = self.sampler(self.validation)
        return DataLoader(self.validation, batch_size=None, sampler=sampler, num_workers=self.fitting_workers)


def split_numbers(labelled: LabelledImages, targets: NDArray, val_share: float, seed: int) -> tuple[NDArray, NDArray]:
    """Split the images into training and validation.

    Args:
        labelled: the table.
        targets: (images, classes).
        val_share: share of the images outside the test split to validate on, if the table has no ``val``; stratified by
            class.
        seed: seed of the split.

    Returns:
        numbers of the training and of the validation images.

    Raises:
        ValueError: if a split would be empty, or a class has fewer than two images to draw from.
    """
    split = np.full(len(targets), "train") if labelled.split is None else labelled.split
    training, validation = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    if not len(training):
        raise ValueError("column split has train for no prepared image")
    if len(validation):
        return training, validation
    if not 0 < val_share < 1:
        raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
    return _draw(training, targets, labelled.multi_label, val_share, seed)


def draw_share(numbers: NDArray, targets: NDArray, multi_label: bool, share: float, seed: int) -> NDArray:
    """Draw a share of the images, stratified by class unless images have several labels.

    Args:
        numbers: numbers of the images to draw from.
        targets: (images, classes) of all images.
        multi_label: whether an image can have several labels at once.
        share: above 0 and at most 1.
        seed: seed of the draw.

    Raises:
        ValueError: if the share is none, or a class has fewer than two images to draw from.
    """
    if not 0 < share <= 1:
        raise ValueError(f"train_share must be above 0 and at most 1, got {share}")
    return numbers if share == 1 else _draw(numbers, targets, multi_label, share, seed)[1]


def _draw(numbers: NDArray, targets: NDArray, multi_label: bool, share: float, seed: int) -> tuple[NDArray, NDArray]:
    """Draw a share and return the rest and the share, stratified by class unless images have several labels."""
    strata = None if multi_label else targets[numbers].argmax(1)
    try:
        rest, drawn = train_test_split(numbers, test_size=share, random_state=seed, stratify=strata)
    except ValueError as error:
        raise ValueError(
            f"cannot draw a share of {share:g} from {len(numbers)} images evenly ({error}); choose another share, or "
            "add a column split (train, val, test)"
        ) from error
    return np.sort(rest), np.sort(drawn)
