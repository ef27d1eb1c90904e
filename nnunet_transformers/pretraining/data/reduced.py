"""Radiographs at a reduced size: one channel, decoded no finer than is wanted."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from .transforms import resize

# pictures that Pillow decodes at a reduced size, or fast
DECODED = (".jpg", ".jpeg", ".png", ".bmp")
# how much finer than wanted a JPEG is decoded before it is resized, for sharp edges
GAP = 2.0
# modes of Pillow with transparency, a palette or single bits, and what they are decoded to
CONVERTED = {"1": "L", "LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "CMYK": "RGB"}
ORIENTATION = ExifTags.Base.Orientation
# what undoes each orientation; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EIGHT_BITS = ("L", "RGB", "CMYK", "YCbCr")


def read_picture(file: str, longest: int) -> NDArray:
    """Read a picture, shrunk so that its longest side has at most ``longest`` pixels.

    A JPEG is decoded at an eighth, a quarter or half of its size where that suffices (Pillow's ``draft``), which saves
    most of the time that a radiograph of 3000x2500 pixels takes.

    Args:
        file: JPEG, PNG or BMP, 8 or 16 bits. Transparency is dropped.
        longest: pixels.

    Returns:
        (1, 1, height, width), the mean over the colours, float32; whole numbers.

    Raises:
        OSError, ValueError: Pillow's on broken files.
    """
    picture: Image.Image
    with Image.open(file) as opened:
        picture = opened
        if picture.format != "JPEG":  # of which Pillow would no longer decode a part
            picture = picture.convert(CONVERTED.get(picture.mode, picture.mode))
        if picture.mode in EIGHT_BITS:
            picture.thumbnail((longest, longest), Image.Resampling.BILINEAR, reducing_gap=GAP)
            picture = picture.convert(CONVERTED.get(picture.mode, picture.mode))
        pixels = np.asarray(_turned(picture), dtype=np.float32)
    pixels = np.rint(pixels.mean(-1)) if pixels.ndim == 3 else pixels
    return reduce(pixels[None, None], longest)


def by_pillow(file: str) -> NDArray | None:
    """Read a picture that nnU-Net's reader refuses, misreads or does not turn.

    Args:
        file: one of ``DECODED``. A TIFF would be cut to its first page and to 8 bits per colour.

    Returns:
        (channels, 1, height, width), float32, of a picture that is grey with transparency, CMYK, or turned by its EXIF
        tag; None for other pictures, and what Pillow does not read.
    """
    try:
        with Image.open(file) as picture:
            turned = _turned(picture)
            if turned is picture and picture.mode not in ("LA", "La", "CMYK"):
                return None
            mode = turned.mode if turned.mode == "RGBA" else CONVERTED.get(turned.mode, turned.mode)
            pixels = np.asarray(turned.convert(mode), dtype=np.float32)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return np.moveaxis(pixels, -1, 0)[:, None] if pixels.ndim == 3 else pixels[None, None]


def _turned(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF tag says; one without a tag, or whose tags are damaged, is returned itself."""
    try:
        turn = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's parser raises errors of many kinds
        return picture
    return picture if turn is None else picture.transpose(turn)


def reduce(voxels: NDArray, longest: int) -> NDArray:
    """Average the channels of a 2D image and shrink it; whole numbers stay whole.

    Args:
        voxels: (channels, 1, height, width).
        longest: largest number of pixels of its longest side.

    Returns:
        (1, 1, height, width), float32.
    """
    grey = voxels[:, 0].mean(axis=0, keepdims=True, dtype=np.float32)
    scale = longest / max(grey.shape)
    if scale < 1:
        size = [max(1, round(n * scale)) for n in grey.shape[1:]]
        grey = resize(torch.from_numpy(np.ascontiguousarray(grey)), size).numpy()
    whole = (voxels == np.rint(voxels)).all()
    return (np.rint(grey) if whole else grey)[:, None]
