"""Radiographs with the tokens of their radiology reports (MGCA)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from nnunetv2.preprocessing.normalization.default_normalization_schemes import RescaleTo01Normalization
from torch import Tensor
from torch.utils.data import DataLoader

from ..._atomic import write_json
from ..._text import printable
from ..encoders.text import load_tokenizer, tokenize
from .epoch import EpochData
from .epoch_samples import ShuffledEpoch, check_counts
from .index import PreparedCase, PreparedIndex
from .radiographs import Radiographs, open_radiographs
from .report_table import ReportPair, read_reports
from .transforms import fit_canvas

# file in the run's folder that lists used and skipped images
PAIRS = "pairs.json"
# MGCA's supplement, A.1: crops of 224 from images of 256
CANVAS = 256 / 224
# unreadable images in a row before an error
ATTEMPTS = 100


def centre_crop(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Fit an image to its canvas and crop the centre, as in validation.

    Args:
        image: (channels, height, width).
        patch_size: height and width of the crop.

    Returns:
        (channels, *patch_size).
    """
    image = fit_canvas(image, canvas_of(patch_size))
    top, left = ((c - p) // 2 for c, p in zip(image.shape[1:], patch_size, strict=True))
    return image[:, top : top + patch_size[0], left : left + patch_size[1]].contiguous()


def canvas_of(patch_size: Sequence[int]) -> list[int]:
    """Return the height and width that an image is fitted to before it is cropped."""
    return [round(p * CANVAS) for p in patch_size]


class ReportPairs(ShuffledEpoch):
    """Pairs of an image and its radiology report, each once per epoch and in random order, in validation too.

    Random order separates the images of a patient, which are adjacent in many tables and hard to tell apart.

    A sample has ``image``, (channels, *patch_size) in the range 0 to 1, ``name``, the image's name in the table, and
    the tokens of the report, see ``tokenize``. If an image cannot be read, a warning names it and another pair takes
    its place.

    Args:
        pairs: pairs to draw from.
        radiographs: the images.
        patch_size: height and width.
        channels: image channels.
        tokenizer: result of ``load_tokenizer``.
        max_length: tokens of a report.
        is_training: crop at random rather than in the centre.
        seed: as for ``Epoch``.

    Raises:
        ValueError: on access, if many images in a row cannot be read.
    """

    def __init__(
        self,
        pairs: Sequence[ReportPair],
        radiographs: Radiographs,
        patch_size: Sequence[int],
        channels: int,
        tokenizer: Any,
        max_length: int,
        is_training: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(len(pairs), seed)
        self.pairs, self.radiographs, self.channels = list(pairs), radiographs, channels
        self.patch_size = tuple(patch_size)
        self.tokenizer, self.max_length, self.is_training = tokenizer, max_length, is_training
        self.unreadable: dict[str, str] = {}

    def sample(self, rng: np.random.Generator, number: int | None = None) -> dict[str, Any]:
        """Return pair ``number``, by default a random pair."""
        number = int(rng.integers(len(self.pairs))) if number is None else number
        for _ in range(ATTEMPTS):
            name = self.pairs[number].image
            image = self._image(name)
            if image is not None:
                return {"image": self._crop(image, rng), "name": name, **self._tokens(number)}
            number = int(rng.integers(len(self.pairs)))
        names = ", ".join(list(self.unreadable)[:3])
        raise ValueError(f"{ATTEMPTS} images in a row cannot be read, such as {names}")

    def _image(self, name: str) -> Tensor | None:
        if name in self.unreadable:
            return None
        try:
            return self.radiographs.read(name, self.channels)
        except Exception as error:  # each reader raises its own errors for broken files
            self.unreadable[name] = str(error).strip().split("\n")[0] or repr(error)
            warnings.warn(printable(f"skipped {name}: cannot be read: {self.unreadable[name]}"), stacklevel=2)
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


class ReportPairData(EpochData):
    """Data module of ``ReportPairs``.

    Args:
        table: CSV or JSONL file, see ``read_reports``.
        text_encoder: local folder or hub name of the text encoder, whose tokenizer is used.
        patch_size: height and width.
        input_channels: input channels of the image encoder.
        image_folder: folder that the table's images are relative to, or folder that was prepared from it; by default
            the table's.
        batch_size: pairs per batch and device.
        num_workers: worker processes of a loader.
        max_length: tokens of a report; longer reports are truncated.
        val_share: share of the patients to validate on, if the table has no column ``split``.
        keep_repeated_reports: use all images of a report, not only the first.
        seed: seed of order and crops.

    Attributes:
        max_length: tokens of a report.
        reports: the table.
        training, validation: the pairs of each split.

    Raises:
        ValueError: if no pair is left to train or to validate on; as ``read_reports``.
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
            raise ValueError(
                f"radiology reports describe 2D images: patch_size must have two numbers, got {tuple(patch_size)}"
            )
        check_counts(batch_size=batch_size)
        self.batch_size, self.num_workers, self.max_length = batch_size, num_workers, max_length
        folder = Path(image_folder) if image_folder else Path(table).parent
        radiographs = open_radiographs(folder, max(canvas_of(patch_size)))
        self.reports = read_reports(Path(table), radiographs, val_share, keep_repeated_reports)
        shared = (radiographs, patch_size, input_channels, load_tokenizer(text_encoder), max_length)
        self.training, self.validation = (
            ReportPairs(self.reports.of(split), *shared, split == "train", seed) for split in ("train", "val")
        )
        if not self.training.pairs or not self.validation.pairs:
            raise ValueError(
                f"{table} leaves nothing to train or to validate on: {self.reports.summary()}. If it has no column "
                "split, increase val_share"
            )
        self.index = PreparedIndex(
            # without the reports, which are confidential
            cases=tuple(PreparedCase(pair.image) for pair in self.training.pairs),
            skipped=tuple(self.reports.skipped),
            channels=("image",) * input_channels,
            spacing=None,
            normalization=(RescaleTo01Normalization.__name__,) * input_channels,
        )

    def setup(self, stage: str) -> None:
        rank_zero_info(printable(self.reports.summary()))
        self._write_index()

    @rank_zero_only
    def _write_index(self) -> None:
        folder = Path(self.attached_trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json({**self.index.to_json(), "max_length": self.max_length}, folder / PAIRS)

    def epoch(self) -> ReportPairs:
        return self.training

    def val_dataloader(self) -> DataLoader[Any]:
        sampler = self.sampler(self.validation)
        return DataLoader(self.validation, self.batch_size, sampler=sampler, num_workers=self.fitting_workers)
