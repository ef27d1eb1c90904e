"""Intensity statistics of a folder, gathered image by image in a few numbers each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

# voxels of a channel that are looked at
SAMPLES = 100_000
_TAIL = (0.0, 0.001, 0.0025, 0.004, 0.005, 0.006, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4)
PROBABILITIES = (*_TAIL, 0.5, *(1 - p for p in reversed(_TAIL)))
# values below which a channel may be a label map
FEW = 16


@dataclass(frozen=True)
class Intensities:
    """Statistics of the foreground of one channel of an image.

    Attributes:
        mean, square: means of the values and of their squares.
        quantiles: values at ``PROBABILITIES``.
    """

    mean: float
    square: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, channel: NDArray, window: Sequence[float] | None = None) -> Intensities:
        """Compute the statistics of the voxels above Otsu's threshold: in CT the body without the air around it.

        Args:
            channel: values of one channel.
            window: lowest and highest value; others are clipped.
        """
        values = sample(channel).astype(np.float64)
        foreground = values[values > _otsu_threshold(values)]
        if window is not None:
            foreground = foreground.clip(window[0], window[1])
        quantiles = tuple(float(q) for q in np.quantile(foreground, PROBABILITIES))
        return cls(float(foreground.mean()), float((foreground**2).mean()), quantiles)

    @classmethod
    def from_json(cls, content: Sequence[Any]) -> Intensities:
        """Restore what ``to_json`` returns."""
        return cls(float(content[0]), float(content[1]), tuple(map(float, content[2:])))

    def to_json(self) -> list[float]:
        """Return the numbers, in nine digits."""
        return [float(f"{value:.9g}") for value in (self.mean, self.square, *self.quantiles)]


def _otsu_threshold(values: NDArray) -> float:
    """Return the value that separates the two classes of least variance; the lowest one if they are all equal."""
    filter_ = sitk.OtsuThresholdImageFilter()
    filter_.Execute(sitk.GetImageFromArray(values[None]))
    threshold = float(filter_.GetThreshold())
    return threshold if threshold < values.max() else float(values.min())


def sample(channel: NDArray) -> NDArray:
    """Draw ``SAMPLES`` values of a channel, always the same ones; all of them from a smaller channel."""
    values = channel.reshape(-1)
    if values.size <= SAMPLES:
        return values
    return values[np.random.default_rng(0).integers(values.size, size=SAMPLES)]


def may_be_labels(channel: NDArray) -> bool:
    """Whether a channel holds so few whole numbers that it may be a label map."""
    values = np.unique(sample(channel))
    return len(values) <= FEW and bool((values == values.round()).all())


def pooled(images: Sequence[Intensities]) -> dict[str, float]:
    """Return the statistics over images, in which each image counts as much as every other, by nnU-Net's names.

    Mean and standard deviation are exact; percentiles are those of the mean of the images' distribution functions,
    which are linear between ``PROBABILITIES``.
    """
    mean = float(np.mean([image.mean for image in images]))
    variance = float(np.mean([image.square for image in images])) - mean**2
    quantiles = np.array([image.quantiles for image in images])
    low, median, high = (_percentile(quantiles, p) for p in (0.005, 0.5, 0.995))
    return {
        "mean": mean,
        "std": max(variance, 0.0) ** 0.5,
        "median": median,
        "min": float(quantiles.min()),
        "max": float(quantiles.max()),
        "percentile_00_5": low,
        "percentile_99_5": high,
    }


def _percentile(quantiles: NDArray, probability: float) -> float:
    """Find the value at which the mean of distribution functions reaches a probability, by bisection."""
    low, high = float(quantiles.min()), float(quantiles.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _reached(quantiles, middle) < probability else (low, middle)
    return high


def _reached(quantiles: NDArray, value: float) -> float:
    """Return the mean of the images' distribution functions at a value."""
    known, rows = np.array(PROBABILITIES), np.arange(len(quantiles))
    below = (quantiles <= value).sum(1)
    left = below.clip(1, len(known) - 1) - 1
    start, end = quantiles[rows, left], quantiles[rows, left + 1]
    share = ((value - start) / np.maximum(end - start, 1e-30)).clip(0, 1)
    return float((known[left] + share * (known[left + 1] - known[left])).mean())
