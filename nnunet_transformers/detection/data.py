"""Images with boxes for training and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._text import printable
from ..classification.crops import ImageCrops
from ..classification.data import draw_share, split_numbers
from ..classification.labels import unknown_note
from ..pretraining.data import EpochData, PreparedImages, ShuffledEpoch
from ..pretraining.data.own_plan import is_shrunk
from .boxes import read_boxes

NO_BOX = -1


def pad_boxes(targets: Sequence[NDArray], number: int) -> Tensor:
    """Stack the boxes of images, (images, number, 5), with rows of class -1 where an image has fewer."""
    padded = torch.full((len(targets), number, 5), float(NO_BOX))
    for row, boxes in zip(padded, targets, strict=True):
        row[: len(boxes)] = torch.from_numpy(boxes)
    return padded


class TrainingImages(ShuffledEpoch):
    """Images to train on, each once per epoch: (channels, *patch_size) and its boxes, (boxes, 5).

    Args:
        samples: the images.
        seed: as for ``Epoch``.
    """

    def __init__(self, samples: BoxedSamples, seed: int = 0) -> None:
        super().__init__(len(samples), seed)
        self.boxed = samples

    def sample(self, rng: np.random.Generator, number: int | None = None) -> tuple[Tensor, Tensor]:
        return self.boxed[int(rng.integers(len(self.boxed))) if number is None else number]


class BoxedSamples(Dataset):
    """Images as the network sees them, and their boxes.

    Args:
        images: prepared images.
        names: names of the images to use.
        boxes: (images, boxes, 5), see ``pad_boxes``.
        views: how an image becomes the network's input.
    """

    def __init__(self, images: PreparedImages, names: Sequence[str], boxes: Tensor, views: ImageCrops) -> None:
        self.images, self.names, self.boxes, self.views = images, list(names), boxes, views

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        (image,) = self.views.evaluation_crops(self.images, self.names[index])
        return image, self.boxes[index]


def whole_images(patch_size: Sequence[int], input_channels: int) -> ImageCrops:
    """Settings that stretch the whole image to the patch, without augmentation (supplement, B.2)."""
    size = tuple(patch_size)
    return ImageCrops(size, input_channels, canvas=size, keep_aspect=False, tiles=False)


class DetectionData(EpochData):
    """Batches of whole images with their boxes.

    Args:
        folder: prepared images.
        table: CSV or COCO file, see ``read_boxes``.
        patch_size: height and width of the network's input; a recipe takes them from the method.
        input_channels: channels of the network's input; a recipe takes them from the method.
        train_share: share of the training images to use, stratified by whether they have a box; validation keeps all of
            its images.
        val_share: share of the images outside the test split to validate on, if the table has no ``val``.
        batch_size: images per batch and device.
        num_workers: worker processes that read.
        seed: seed of splits and order.

    Attributes:
        classes: classes of boxes, in the order of the network's outputs.
        views: how an image becomes the network's input.
        names: names of the images of the table.
        train_numbers, val_numbers: their numbers in each split.

    Raises:
        ValueError: if the table cannot be used, training or validation has no box, or the settings contradict the
            images.
        FileNotFoundError: if the folder was not prepared or there is no table.
    """

    def __init__(
        self,
        folder: str,
        table: str,
        patch_size: Sequence[int],
        input_channels: int = 1,
        train_share: float = 1.0,
        val_share: float = 0.2,
        batch_size: int = 16,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.images = PreparedImages(Path(folder))
        self.index = self.images.index
        found = read_boxes(Path(table), self.images.names, self.images.files)
        found.check_shapes(self.images.shapes, is_shrunk(self.index.plans))
        self.names, self.unknown, self.classes = np.array(found.images.names), found.images.unknown, found.classes()
        presence = found.presence()
        training, self.val_numbers = split_numbers(found.images, presence, val_share, seed)
        self.train_numbers = draw_share(training, presence, False, train_share, seed)
        self.has_box = presence[:, 1] == 1
        for what, numbers in (("training", self.train_numbers), ("validation", self.val_numbers)):
            if not self.has_box[numbers].any():
                raise ValueError(f"none of the {len(numbers)} {what} images of {table} has a box")
        targets = found.targets(self.classes)
        self.boxes = pad_boxes(targets, max(map(len, targets)))
        self.views = whole_images(patch_size, input_channels)
        self.views.check(self.index)

    def setup(self, stage: str) -> None:
        training, validation = (
            BoxedSamples(self.images, self.names[n], self.boxes[n], self.views)
            for n in (self.train_numbers, self.val_numbers)
        )
        self.training, self.validation = TrainingImages(training, self.seed), validation
        rank_zero_info(printable(self.summary()))

    def summary(self) -> str:
        """Count the images and boxes of each split, and the images of the table that were not prepared."""
        counts = [
            f"{len(n)} images to {verb} ({int((self.boxes[n][..., 0] >= 0).sum())} boxes on {self.has_box[n].sum()})"
            for n, verb in ((self.train_numbers, "train on"), (self.val_numbers, "validate on"))
        ]
        return ", ".join(filter(None, (*counts, unknown_note(self.unknown))))

    def epoch(self) -> TrainingImages:
        return self.training

    def val_dataloader(self) -> DataLoader[Any]:
        sampler = self.sampler(self.validation)
        return DataLoader(self.validation, self.batch_size, sampler=sampler, num_workers=self.fitting_workers)
