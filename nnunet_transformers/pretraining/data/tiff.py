"""TIFF pictures by what their tags say of the samples, which nnU-Net's reader takes as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile

TRANSPARENCY = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)


def read_tiff(file: str, channels: int | None = None) -> NDArray | None:
    """Read a picture: what is white is bright, transparency is dropped, CMYK becomes RGB.

    Args:
        file: TIFF.
        channels: wanted number of channels; transparency and CMYK stay if a picture has so many with them.

    Returns:
        (channels, 1, height, width), float32; None for a volume. Pages of another size than the first are thumbnails.

    Raises:
        Exception: tifffile's on broken files.
    """
    with TiffFile(file) as content:
        image, (page, *others) = content.series[0], content.pages
        has_depth = any(n > 1 for n, axis in zip(image.shape, image.axes, strict=True) if axis not in "YXS")
        if has_depth or any((other.shape, other.dtype) == (page.shape, page.dtype) for other in others):
            return None
        stored, axes = page.asarray(), page.axes
        kind, extras, bits = page.photometric, page.extrasamples, page.bitspersample
    samples = np.moveaxis(stored, axes.index("S"), 0) if "S" in axes else stored[None]
    white = 2.0**bits - 1 if stored.dtype.kind in "ub" else 1.0
    samples = samples.astype(np.float32)
    if len(samples) != channels:
        transparent = [number - len(extras) for number, extra in enumerate(extras) if extra in TRANSPARENCY]
        samples = np.delete(samples, transparent, axis=0)
        if kind == PHOTOMETRIC.SEPARATED and len(samples) == 4:
            samples = (white - samples[:3]) * (white - samples[3]) / white
    if kind == PHOTOMETRIC.MINISWHITE:
        samples = white - samples
    return samples[:, None]
