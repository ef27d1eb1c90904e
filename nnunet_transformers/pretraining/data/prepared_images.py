"""Reader of parts of prepared images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor

from ..._reading import reading
from .image_store import decode, open_image, path_of
from .index import read_index


def tile_starts(shape: Sequence[int], size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Return the first voxel of each tile of an image, tiles side by side as in nnU-Net's sliding window.

    Args:
        shape: voxels of the image per axis, three axes.
        size: voxels of a tile per axis; two axes tile each slice.
    """
    wanted = (1,) * (3 - len(size)) + tuple(size)
    covered = tuple(max(n, s) for n, s in zip(shape, wanted, strict=True))
    return product(*compute_steps_for_sliding_window(covered, wanted, 1.0))


class PreparedImages:
    """Read parts of prepared images, without loading whole images.

    Args:
        folder: folder written by ``prepare``.
        names: images to draw random crops from; by default all of the folder.

    Attributes:
        index: index of the folder.
        cases: entries of the index by name.
        shapes: shape of each image, (channels, depth, height, width), by name.
        names: names of the images to draw from.
        files: image names by the path of their first file in the source; None for those that could not be used.

    Raises:
        FileNotFoundError, ValueError: as ``read_index``.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        self.cases = {case.name: case for case in self.index.cases}
        self.shapes = {case.name: case.shape for case in self.index.cases}
        self.names = list(self.shapes if names is None else names)
        self.files: dict[str, str | None] = {case.key: case.name for case in self.index.cases if case.key}
        self.files |= {skipped.key: None for skipped in self.index.skipped if skipped.key}

    def read(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """Read a part of an image.

        An axis that is shorter than the part is padded on both sides with the part's minimum, because zero is the mean
        of a z-scored image.

        Args:
            name: image name.
            start: first voxel on each of three axes.
            size: voxels per axis; two axes read a slice.

        Returns:
            (channels, *size), float32.

        Raises:
            FileNotFoundError: if its file is missing.
            ValueError: if there is no such image, or its file is truncated. It has no checksum, so that other damage
                shows in the values alone.
        """
        if name not in self.cases:
            raise ValueError(f"there is no image {name} in {self.folder}; its manifest lists the images")
        case = self.cases[name]
        path = path_of(self.folder, case)
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        block = (slice(None), *(slice(a, a + s) for a, s in zip(start, wanted, strict=True)))
        with reading(path, "a prepared image", "prepare the images again"):
            image = open_image(self.folder, case)
            if tuple(image.shape) != self.shapes[name]:
                raise ValueError(f"it has {tuple(image.shape)} voxels, the index says {self.shapes[name]}")
            part = decode(np.asarray(image[block]), case.scale, case.shift)
        missing = [s - n for s, n in zip(wanted, part.shape[1:], strict=True)]
        if any(missing):
            ends = [(m // 2, m - m // 2) for m in missing]
            part = np.stack([np.pad(channel, ends, constant_values=channel.min()) for channel in part])
        tensor = torch.from_numpy(np.ascontiguousarray(part))
        return tensor[:, 0] if len(size) == 2 else tensor

    def tiles(self, name: str, size: Sequence[int]) -> Iterator[Tensor]:
        """Yield tiles that cover an image, (channels, *size) each; the last ones overlap. 2D tiles cover all slices."""
        for start in tile_starts(self.shapes[name][1:], size):
            yield self.read(name, start, size)

    def crop(self, size: Sequence[int], rng: np.random.Generator, name: str | None = None) -> Tensor:
        """Read a random part of an image, by default of a random image; see ``read``."""
        name = name or self.names[rng.integers(len(self.names))]
        wanted = (1, *size) if len(size) == 2 else tuple(size)
        room = [max(0, n - s) for n, s in zip(self.shapes[name][1:], wanted, strict=True)]
        return self.read(name, [int(rng.integers(n + 1)) for n in room], size)

    def read_beyond(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """Read a part of an image that may reach beyond its borders, where it is padded with the part's minimum.

        Args:
            name: image name.
            start: first voxel on each of three axes; may be negative.
            size: voxels on each of three axes.

        Returns:
            (channels, *size), float32.
        """
        shape = np.array(self.shapes[name][1:])
        first, last = np.clip(start, 0, shape - 1), np.clip(np.add(start, size), 1, shape)
        part = self.read(name, first.tolist(), (last - first).tolist())
        before = first - np.array(start)
        after = np.array(size) - before - (last - first)
        padding = [int(n) for axis in (2, 1, 0) for n in (before[axis], after[axis])]
        return torch.stack([F.pad(channel, padding, value=float(channel.min())) for channel in part])

    def crop_with_surroundings(self, size: Sequence[int], taken: Sequence[int], rng: np.random.Generator) -> Tensor:
        """Read a random part of a random image, as ``crop``, with what is around it for a rotation.

        Every voxel of an image can be in the part itself, as those of nnU-Net's crops: only the surroundings reach
        beyond its borders.

        Args:
            size: voxels per axis of the part, two or three axes.
            taken: voxels per axis to read, the part in their middle.
            rng: draws image and part.

        Returns:
            (channels, *taken), float32.
        """
        name = self.names[rng.integers(len(self.names))]
        part, around = ((1,) * (3 - len(s)) + tuple(s) for s in (size, taken))
        start = []
        for n, inner, outer in zip(self.shapes[name][1:], part, around, strict=True):
            first = int(rng.integers(n - inner + 1)) if n >= inner else -((inner - n) // 2)
            start.append(first - (outer - inner) // 2)
        read = self.read_beyond(name, start, around)
        return read[:, 0] if len(size) == 2 else read
