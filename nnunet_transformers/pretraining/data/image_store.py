"""Storage of prepared images: a blosc2 file for a volume, shards of them for 2D images, in as few bits as they need.

A shard is an uncompressed tar of ``NAME.b2nd``, which any tar unpacks; an image is read by its place in the shard,
without the other images.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from numpy.typing import NDArray

from ..._paths import inside
from .index import PreparedCase

# bytes after which a shard is followed by another
SHARD_BYTES = 2**30
# of the end of an image that identify it
IDENTIFYING_BYTES = 2**16
# error of the linear map, relative to the range of an image: a third of a step of 16 bits
TOLERANCE = 5e-6
# codec, level and filters to choose from, by bytes of a voxel: what packs radiographs fastest to few bytes, and
# nnU-Net's for float32, where voxels that were resampled want another filter than those of the source
CODECS = {
    1: (blosc2.Codec.ZSTD, 1, (blosc2.Filter.BITSHUFFLE,)),
    2: (blosc2.Codec.ZSTD, 1, (blosc2.Filter.SHUFFLE,)),
    4: (blosc2.Codec.LZ4HC, 5, (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE)),
}


@dataclass(frozen=True)
class Encoded:
    """An image in as few bits as it needs.

    Attributes:
        voxels: (channels, depth, height, width), uint8, uint16 or float32.
        scale, shift: of each channel, by which value = scale * voxel + shift; empty for float32.
    """

    voxels: NDArray
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()

    @property
    def decoded(self) -> NDArray:
        """Values, float32."""
        return decode(self.voxels, self.scale, self.shift)


def encode(values: NDArray, original: NDArray | None) -> Encoded:
    """Store an image in the bits of its source, if the source has at most 16.

    Args:
        values: (channels, depth, height, width), float32, normalised.
        original: the same before normalisation and after resampling was found unnecessary, or of another shape: the
            source's voxels. None keeps float32, as for volumes.

    Returns:
        the source's whole numbers if the values are linear in them; otherwise, if the source has 16 bits or fewer, the
        values in 65536 steps; otherwise float32.
    """
    if original is None:
        return Encoded(values)
    lowest = original.min(axis=(1, 2, 3))
    span = float((original.max(axis=(1, 2, 3)) - lowest).max())
    if span > 65535 or (original != np.rint(original)).any():
        return Encoded(values)
    if original.shape == values.shape:
        dtype = np.uint8 if span <= 255 else np.uint16
        lossless = _linear((original - lowest[:, None, None, None]).astype(dtype), values)
        if np.abs(lossless.decoded - values).max() <= TOLERANCE * float(np.ptp(values)):
            return lossless
    low = values.min(axis=(1, 2, 3), keepdims=True)
    steps = np.rint((values - low) / np.maximum(values.max(axis=(1, 2, 3), keepdims=True) - low, 1e-30) * 65535)
    return _linear(steps.astype(np.uint16), values)


def _linear(voxels: NDArray, values: NDArray) -> Encoded:
    """Return the map of each channel's extremes to those of its values."""
    scale, shift = [], []
    for channel, target in zip(voxels, values, strict=True):
        low, high = int(channel.min()), int(channel.max())
        first, last = float(target.min()), float(target.max())
        step = (last - first) / (high - low) if high > low else 0.0
        scale.append(step)
        shift.append(first - step * low)
    return Encoded(voxels, tuple(scale), tuple(shift))


def decode(voxels: NDArray, scale: Sequence[float], shift: Sequence[float]) -> NDArray:
    """Return values of encoded voxels, (channels, ...), float32."""
    if not scale:
        return voxels.astype(np.float32, copy=False)
    axes = (-1,) + (1,) * (voxels.ndim - 1)
    factor, offset = (np.array(v, dtype=np.float32).reshape(axes) for v in (scale, shift))
    return voxels.astype(np.float32) * factor + offset


def compress(voxels: NDArray, patch_size: Sequence[int]) -> bytes:
    """Compress an image to the content of a ``.b2nd`` file, in nnU-Net's blocks for a patch size.

    Args:
        voxels: (channels, depth, height, width).
        patch_size: approximate size of the crops that will be read.
    """
    blosc2.set_nthreads(1)
    blocks, chunks = comp_blosc2_params(voxels.shape, tuple(patch_size), voxels.itemsize)
    codec, level, filters = CODECS[voxels.itemsize]
    # the chunk in the middle decides on the filter
    starts = [(n - c) // 2 for n, c in zip(voxels.shape, chunks, strict=True)]
    middle = voxels[tuple(slice(s, s + c) for s, c in zip(starts, chunks, strict=True))]

    def packed(part: NDArray, chosen: blosc2.Filter) -> bytes:
        cparams = {"codec": codec, "clevel": level, "filters": [chosen], "nthreads": 1}
        array = blosc2.asarray(np.ascontiguousarray(part), chunks=chunks, blocks=blocks, cparams=cparams)
        return bytes(array.to_cframe())

    best = filters[0] if len(filters) == 1 else min(filters, key=lambda chosen: len(packed(middle, chosen)))
    return packed(voxels, best)


def open_image(folder: Path, case: PreparedCase) -> Any:
    """Open a stored image, which then reads the blocks that are asked for."""
    blosc2.set_nthreads(1)
    mmap = {} if os.name == "nt" else {"mmap_mode": "r"}
    return blosc2.open(str(path_of(folder, case)), mode="r", offset=case.offset, **mmap)


def path_of(folder: Path, case: PreparedCase) -> Path:
    """Return the file that holds an image."""
    return inside(folder, case.shard or f"{case.name}.b2nd")


def identity(folder: Path, case: PreparedCase) -> bytes:
    """Return bytes that tell an image from another one that takes its name later, without reading all of it.

    They are the length and the end of what is stored, which is compressed: images that differ in more than a few voxels
    do not share both.
    """
    with open(path_of(folder, case), "rb") as file:
        end = case.offset + case.length if case.length else file.seek(0, os.SEEK_END)
        file.seek(max(case.offset, end - IDENTIFYING_BYTES))
        return (end - case.offset).to_bytes(8, "little") + file.read(end - file.tell())


class ShardWriter:
    """Append images to the shards of a folder.

    Args:
        folder: prepared folder.
        stored: images that it holds. What its last shard holds beyond them, which a killed process has left, is
            written over.
    """

    def __init__(self, folder: Path, stored: Sequence[PreparedCase] = ()) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        ends: dict[str, int] = {}
        for case in stored:
            if case.shard:
                ends[case.shard] = max(ends.get(case.shard, 0), case.offset + case.length)
        last = max(ends, default="")
        self.number, self.end = (_number(last), _padded(ends[last])) if last else (0, 0)

    def append(self, name: str, content: bytes) -> dict[str, Any]:
        """Append an image; return the entries of ``PreparedCase`` that lead to it. ``sync`` writes it to the disk."""
        if self.end >= SHARD_BYTES:
            self.close()
            self.number, self.end = self.number + 1, 0
        file = self._opened()
        member = tarfile.TarInfo(f"{name}.b2nd")
        member.size = len(content)
        header = member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        offset = self.end + len(header)
        file.write(header + content + bytes(_padded(len(content)) - len(content)))
        self.end = _padded(offset + len(content))
        return {"shard": _shard(self.number), "offset": offset, "length": len(content)}

    def sync(self) -> None:
        """Write to the disk what was appended."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the current shard; a later image overwrites the end."""
        if self._file is not None:
            self._file.write(bytes(2 * tarfile.BLOCKSIZE))
            self.sync()
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _shard(self.number)
            self._file = open(path, "rb+" if path.exists() else "wb")  # noqa: SIM115
            self._file.truncate(self.end)
            self._file.seek(self.end)
        return self._file


def _shard(number: int) -> str:
    return f"shard-{number:05d}.tar"


def _number(shard: str) -> int:
    return int(shard.removeprefix("shard-").removesuffix(".tar"))


def _padded(size: int) -> int:
    """Return a size rounded up to whole blocks of tar."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
