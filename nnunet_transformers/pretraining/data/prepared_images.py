"""Prepared images, read block by block."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

from .prepare import INDEX


def read_index(folder: Path) -> dict[str, Any]:
    """The list of a prepared folder's images.

    Raises:
        FileNotFoundError: if the folder was not prepared, or not to the end.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no prepared folder; make one with `nnunet-transformers pretrain prepare`")
    return json.loads(path.read_text())


def tile_starts(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """First voxels of tiles that cover an image.

    Args:
        shape: of the image, three axes.
        size: of a tile; two axes take slices.
    """
    wanted = (1,) * (3 - len(size)) + tuple(size)
    covered = tuple(max(n, s) for n, s in zip(shape, wanted, strict=True))
    return product(*compute_steps_for_sliding_window(covered, wanted, 1.0))


class PreparedImages:
    """Prepared images, of which parts are read: an image is opened, not loaded.

    Args:
        folder: prepared images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.shapes = {case["name"]: tuple(case["shape"]) for case in self.index["cases"]}
        self.names = list(self.shapes)

    def read(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """A part of an image.

        An axis that ends before the part does is filled up on both sides with the part's smallest value; zero would be
        the image's mean.

        Args:
            name: of the image.
            start: first voxel on each axis, three of them.
            size: voxels per axis; two of them take a slice.

        Returns:
            (channels, *size), float32.
        """
        blosc2.set_nthreads(1)
        mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
        image = blosc2.open(str(self.folder / f"{name}.b2nd"), mode="r", **mmap)
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        part = np.asarray(image[(slice(None), *(slice(a, a + s) for a, s in zip(start, wanted, strict=True)))])
        missing = [s - n for s, n in zip(wanted, part.shape[1:], strict=True)]
        if any(missing):
            ends = [(m // 2, m - m // 2) for m in missing]
            part = np.stack([np.pad(channel, ends, constant_values=channel.min()) for channel in part])
        part = torch.from_numpy(np.ascontiguousarray(part))
        return part[:, 0] if len(size) == 2 else part

    def tiles(self, name: str, size: Sequence[int]) -> Iterator[Tensor]:
        """An image in parts side by side, (channels, *size) each, the last ones overlapping; in 2D of all slices."""
        for start in tile_starts(self.shapes[name][1:], size):
            yield self.read(name, start, size)

    def crop(self, size: Sequence[int], rng: np.random.Generator, name: str | None = None) -> Tensor:
        """A random part of an image, a random one if not named; see ``read``."""
        name = name or self.names[rng.integers(len(self.names))]
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        room = [max(0, n - s) for n, s in zip(self.shapes[name][1:], wanted, strict=True)]
        return self.read(name, [int(rng.integers(n + 1)) for n in room], size)
