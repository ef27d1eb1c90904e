"""Batches of images with the tokens of their reports (MGCA)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RescaleTo01Normalization
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ..._atomic import write_json
from ..encoders.text import load_tokenizer, tokenize
from . import EpochData, ShuffledEpoch
from .cases import FILE_ENDINGS
from .report_table import Pair, read_reports
from .transforms import fit_canvas

# what was used and what was skipped, in the run's folder
PAIRS = "pairs.json"
# supplement A.1: crops of 224 from images of 256
CANVAS = 256 / 224
# nnU-Net has no JPEG among its formats because of labels, of which there are none here
JPEG = (".jpg", ".jpeg")
ATTEMPTS = 100


@lru_cache
def _reader(ending: str) -> BaseReaderWriter:
    return NaturalImage2DIO() if ending in JPEG else determine_reader_writer_from_file_ending(ending, verbose=False)()


def read_radiograph(file: Path, channels: int) -> Tensor:
    """Read a 2D image of one of nnU-Net's formats, or JPEG.

    Args:
        file: the image.
        channels: wanted ones: a grey image is repeated, a colour image averaged for one channel.

    Returns:
        (channels, height, width), from 0 to 1: each image's own range.

    Raises:
        ValueError: if the image is not 2D, constant, or has another number of channels.
        Exception: whatever nnU-Net's readers raise for a broken file.
    """
    name = file.name.lower()
    ending = next((e for e in (*FILE_ENDINGS, *JPEG) if name.endswith(e)), file.suffix.lower())
    array, _ = _reader(ending).read_images((str(file),))
    if array.shape[1] != 1:
        raise ValueError(f"has {array.shape[1]} slices, reports go with 2D images")
    image = torch.from_numpy(np.ascontiguousarray(array[:, 0], dtype=np.float32))
    if not image.isfinite().all() or image.min() == image.max():
        raise ValueError("is constant or holds NaN or infinity")
    if len(image) == 4:
        image = image[:3]  # without transparency
    if channels == 1:
        image = image.mean(0, keepdim=True)
    elif len(image) == 1:
        image = image.expand(channels, -1, -1)
    if len(image) != channels:
        raise ValueError(f"has {len(image)} channels, the encoder takes {channels}")
    image = image - image.min()
    return image / image.max()


def centre_crop(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """The middle of an image on its canvas, as validation has it.

    Args:
        image: (channels, height, width).
        patch_size: height and width.

    Returns:
        (channels, *patch_size).
    """
    image = fit_canvas(image, canvas_of(patch_size))
    top, left = ((c - p) // 2 for c, p in zip(image.shape[1:], patch_size, strict=True))
    return image[:, top : top + patch_size[0], left : left + patch_size[1]].contiguous()


def canvas_of(patch_size: Sequence[int]) -> list[int]:
    """Height and width that an image is fitted to before it is cropped."""
    return [round(p * CANVAS) for p in patch_size]


class ReportPairs(ShuffledEpoch):
    """Pairs of an image and its report, each once an epoch, in validation too in random order.

    A patient's images, neighbours in many a table, are hard to tell apart.

    A sample has ``image`` (channels, *patch_size), from 0 to 1, and the tokens of the report, see ``tokenize``. The
    place of an image that cannot be read is taken by another pair; a warning names it.

    Args:
        pairs: to draw from.
        image_folder: that their names are relative to.
        patch_size: height and width.
        channels: of the images.
        tokenizer: of ``load_tokenizer``.
        max_length: tokens of a report.
        is_training: crops and order are random, and not those of the centre.
        seed: as for ``Epoch``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        image_folder: Path,
        patch_size: Sequence[int],
        channels: int,
        tokenizer: Any,
        max_length: int,
        is_training: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(len(pairs), seed)
        self.pairs, self.image_folder, self.channels = list(pairs), image_folder, channels
        self.patch_size = tuple(patch_size)
        self.tokenizer, self.max_length, self.is_training = tokenizer, max_length, is_training
        self.unreadable: dict[str, str] = {}

    def sample(self, rng: np.random.Generator, number: int | None = None) -> dict[str, Tensor]:
        """The pair of a number, or a random one."""
        number = int(rng.integers(len(self.pairs))) if number is None else number
        for _ in range(ATTEMPTS):
            image = self._image(self.pairs[number].image)
            if image is not None:
                return {"image": self._crop(image, rng), **self._tokens(number)}
            number = int(rng.integers(len(self.pairs)))
        names = ", ".join(list(self.unreadable)[:3])
        raise ValueError(f"{ATTEMPTS} images in a row in {self.image_folder} cannot be read, such as {names}")

    def _image(self, name: str) -> Tensor | None:
        if name in self.unreadable:
            return None
        try:
            return read_radiograph(self.image_folder / name, self.channels)
        except Exception as error:  # whatever a reader makes of a broken file
            self.unreadable[name] = str(error).strip().split("\n")[0] or repr(error)
            warnings.warn(f"skipped {name}: cannot be read: {self.unreadable[name]}", stacklevel=2)
            return None

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if not self.is_training:
            return centre_crop(image, self.patch_size)
        image = fit_canvas(image, canvas_of(self.patch_size))
        top, left = (int(rng.integers(c - p + 1)) for c, p in zip(image.shape[1:], self.patch_size, strict=True))
        return image[:, top : top + self.patch_size[0], left : left + self.patch_size[1]].contiguous()

    def _tokens(self, number: int) -> dict[str, Tensor]:
        tokens = tokenize(self.tokenizer, [self.pairs[number].report], self.max_length)
        return {name: value[0] for name, value in tokens.items()}


class ReportData(EpochData):
    """Batches of images and reports.

    Args:
        table: CSV or JSONL file, see ``read_reports``.
        text_encoder: local folder or hub name of the text encoder, whose tokenizer is used.
        patch_size: height and width.
        input_channels: of the image encoder.
        image_folder: that the table's images are relative to; the table's by default.
        batch_size: pairs in a batch, on each device.
        num_workers: processes that read.
        max_length: tokens of a report; the rest is cut off.
        val_share: of the patients, to validate on, if the table has no column ``split``.
        keep_repeated_reports: use all images of a report.
        seed: of order and crops.

    Raises:
        ValueError: if nothing is left to train or to validate on; as ``read_reports``.
        FileNotFoundError, OSError, ModuleNotFoundError: as ``read_reports`` and ``load_tokenizer``.
    """

    def __init__(
        self,
        table: str,
        text_encoder: str,
        patch_size: Sequence[int] = (224, 224),
        input_channels: int = 3,
        image_folder: str | None = None,
        batch_size: int = 72,
        num_workers: int = 2,
        max_length: int = 112,
        val_share: float = 0.05,
        keep_repeated_reports: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(patch_size) != 2:
            raise ValueError(f"reports go with 2D images: patch_size must have two numbers, got {tuple(patch_size)}")
        self.batch_size, self.num_workers = batch_size, num_workers
        folder = Path(image_folder) if image_folder else Path(table).parent
        self.reports = read_reports(Path(table), folder, val_share, keep_repeated_reports)
        shared = (folder, patch_size, input_channels, load_tokenizer(text_encoder), max_length)
        self.training, self.validation = (
            ReportPairs(self.reports.of(split), *shared, split == "train", seed) for split in ("train", "val")
        )
        if not self.training.pairs or not self.validation.pairs:
            raise ValueError(
                f"{table} leaves nothing to train or to validate on: {self.reports.summary()}. Without a column split "
                "a larger val_share helps"
            )
        self.index = {
            # without the reports, which are a patient's
            "cases": [{"name": pair.image} for pair in self.training.pairs],
            "skipped": [asdict(skipped) for skipped in self.reports.skipped],
            "channels": ["image"] * input_channels,
            "spacing": None,
            "normalization": [RescaleTo01Normalization.__name__] * input_channels,
            "max_length": max_length,
        }

    def setup(self, stage: str) -> None:
        rank_zero_info(self.reports.summary())
        self._write_index()

    @rank_zero_only
    def _write_index(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(self.index, folder / PAIRS)

    def epoch(self) -> ReportPairs:
        return self.training

    def val_dataloader(self) -> DataLoader:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.validation, world, rank, shuffle=False)
        return DataLoader(self.validation, self.batch_size, sampler=sampler, num_workers=self.num_workers)
