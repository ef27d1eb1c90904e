"""Slices as PNG data URIs, one pixel a voxel: the grey image, and see-through layers of labels and errors on it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from .palette import distinct_colours

# of 255; the image stays visible below a label, and more so below what is correct
OPACITY, FAINT = 150, 60
# of the voxels where label and prediction differ, distinct on grey and for colour-blind readers, and of no label
MISSED, SPURIOUS, CONFUSED = "#00ffff", "#ff0000", "#ffff00"
ERRORS = {"missed": MISSED, "predicted where nothing is": SPURIOUS, "another label": CONFUSED, "correct": "#ffffff"}


def grey(image: NDArray) -> str:
    """Draw a slice, (height, width), between the percentiles 0.5 and 99.5 of its finite values."""
    finite = image[np.isfinite(image)].astype(float)
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    scaled = (np.nan_to_num(image.astype(float), nan=low) - low) / max(high - low, 1e-6)
    return _png(Image.fromarray(np.uint8(255 * np.clip(scaled, 0, 1))))


def labels(parts: NDArray, number: int) -> str:
    """Draw the labels of a slice as a layer.

    Args:
        parts: (height, width), index of the part of each voxel, see ``index_of_part``; -1 is see-through.
        number: how many parts there are, which sets the colours.
    """
    return _layer(parts, distinct_colours(number), [OPACITY] * number)


def errors(label: NDArray, prediction: NDArray) -> str:
    """Draw what is wrong as a layer in the colours of ``ERRORS``.

    Args:
        label, prediction: (height, width), index of the part of each voxel; -1 for none.
    """
    kinds = np.full(label.shape, -1)
    kinds[(label >= 0) & (prediction < 0)] = 0
    kinds[(label < 0) & (prediction >= 0)] = 1
    kinds[(label >= 0) & (prediction >= 0)] = 2
    kinds[(label >= 0) & (prediction == label)] = 3
    return _layer(kinds, [*ERRORS.values()], [255, 255, 255, FAINT])


def _layer(index: NDArray, colours: Sequence[str], opacities: Sequence[int]) -> str:
    table = np.zeros((len(colours) + 1, 4), np.uint8)  # the last, which -1 takes, is see-through
    for i, (colour, opacity) in enumerate(zip(colours, opacities, strict=True)):
        table[i] = *(round(255 * c) for c in to_rgb(colour)), opacity
    return _png(Image.fromarray(table[index]))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
