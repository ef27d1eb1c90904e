"""A classifier's input: random crops of prepared images in training, tiles or the centre crop in evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import NoNormalization
from torch import Tensor

from ..pretraining.data import PreparedImages, PreparedIndex, tile_starts
from ..pretraining.data.transforms import fit_canvas, resize


@dataclass(frozen=True)
class ImageCrops:
    """Settings that turn a prepared image into a network's input.

    An image smaller than the patch is padded with its minimum. A 2D network sees slices of a volume.

    Attributes:
        patch_size: voxels per axis of the network's input.
        input_channels: channels of the network's input; an image of one channel is repeated.
        canvas: size that the whole image, or slice, is resized to before it is cropped; None keeps the prepared size.
        keep_aspect: keep the aspect ratio and pad to the canvas, rather than stretch the image.
        intensity_range: values that are mapped to 0 and 1, others clipped, such as a window in HU; for images that were
            prepared without normalisation. None keeps the prepared intensities.
        tiles: evaluate on tiles that cover the image; False evaluates on the centre crop.
        evaluation_canvas: canvas in evaluation, where it differs, such as the patch to evaluate on whole images only.
        intensity_mean_std: mean to subtract and deviation to divide by, after clipping to ``intensity_range``, instead
            of mapping it to 0 to 1.

    Raises:
        ValueError: if a canvas is smaller than the patch, or ``intensity_range`` is not a range or missing.

    Examples:
        >>> crops = ImageCrops((16, 16, 16), canvas=(20, 20, 20))
        >>> crops.random_crop(images, "case_0", np.random.default_rng(0)).shape
        torch.Size([1, 16, 16, 16])
    """

    patch_size: tuple[int, ...]
    input_channels: int = 1
    canvas: tuple[int, ...] | None = None
    keep_aspect: bool = True
    intensity_range: tuple[float, float] | None = None
    tiles: bool = True
    evaluation_canvas: tuple[int, ...] | None = None
    intensity_mean_std: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for sizes in (self.canvas, self.evaluation_canvas):
            sizes = sizes or self.patch_size
            if len(sizes) != len(self.patch_size) or any(c < p for c, p in zip(sizes, self.patch_size, strict=True)):
                raise ValueError(f"canvas {sizes} must have the axes of the patch {self.patch_size} and be no smaller")
        if self.intensity_mean_std is not None and self.intensity_range is None:
            raise ValueError("intensity_mean_std needs intensity_range, the window that it is of")
        if self.intensity_range is not None and not self.intensity_range[0] < self.intensity_range[1]:
            raise ValueError(f"intensity_range must be two increasing numbers, got {self.intensity_range}")

    def check(self, index: PreparedIndex) -> None:
        """Check that prepared images fit these settings.

        Raises:
            ValueError: if their channels differ from the network's, or ``intensity_range`` is given for normalised
                images.
        """
        channels = len(index.channels)
        if channels not in (1, self.input_channels):
            raise ValueError(f"the prepared images have {channels} channels, the network takes {self.input_channels}")
        if self.intensity_range is not None and set(index.normalization) != {NoNormalization.__name__}:
            raise ValueError(
                f"intensity_range {self.intensity_range} needs images without normalisation, but these were prepared "
                f"with {index.normalization[0]}: prepare them with --normalization nonorm, or set intensity_range to "
                "null"
            )

    def random_crop(self, images: PreparedImages, name: str, rng: np.random.Generator) -> Tensor:
        """Crop a random part of an image, (input_channels, *patch_size)."""
        if self.canvas is None:
            return self._values(images.crop(self.patch_size, rng, name))
        slices = images.shapes[name][1]
        number = int(rng.integers(slices)) if len(self.patch_size) == 2 else 0
        whole = self._on_canvas(images, name, number, self.canvas)
        room = [c - p for c, p in zip(self.canvas, self.patch_size, strict=True)]
        return self._values(self._crop(whole, [int(rng.integers(r + 1)) for r in room]))

    def evaluation_crops(self, images: PreparedImages, name: str) -> Iterator[Tensor]:
        """Yield the tiles of an image, or its centre crop, each (input_channels, *patch_size); in 2D of all slices."""
        shape = images.shapes[name][1:]
        canvas = self.evaluation_canvas or self.canvas
        if canvas is not None:
            for number in range(shape[0]) if len(self.patch_size) == 2 else (0,):
                whole = self._on_canvas(images, name, number, canvas)
                size = (1,) * (3 - len(canvas)) + canvas
                for start in tile_starts(size, self.patch_size) if self.tiles else self._centres(size):
                    yield self._values(self._crop(whole, start[-len(self.patch_size) :]))
            return
        for start in tile_starts(shape, self.patch_size) if self.tiles else self._centres(shape):
            yield self._values(images.read(name, start, self.patch_size))

    def _on_canvas(self, images: PreparedImages, name: str, number: int, canvas: tuple[int, ...]) -> Tensor:
        shape = images.shapes[name][1:]
        if len(canvas) == 2:
            image = images.read(name, (number, 0, 0), shape[1:])
        else:
            image = images.read(name, (0, 0, 0), shape)
        return fit_canvas(image, canvas, float(image.min())) if self.keep_aspect else resize(image, canvas)

    def _crop(self, whole: Tensor, start: Sequence[int]) -> Tensor:
        region = (slice(None), *(slice(a, a + p) for a, p in zip(start, self.patch_size, strict=True)))
        return whole[region]

    def _values(self, crop: Tensor) -> Tensor:
        if self.intensity_range is not None:
            low, high = self.intensity_range
            mean, std = self.intensity_mean_std or (low, high - low)
            crop = (crop.clamp(low, high) - mean) / std
        return crop.expand(self.input_channels, *crop.shape[1:]).contiguous()

    def _centres(self, shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the first voxel of the centre crop on each of three axes; in 2D of each slice."""
        wanted = (1,) * (3 - len(self.patch_size)) + self.patch_size
        first = tuple(max(0, n - s) // 2 for n, s in zip(shape, wanted, strict=True))
        yield from ((n, *first[1:]) for n in (range(shape[0]) if len(self.patch_size) == 2 else first[:1]))
