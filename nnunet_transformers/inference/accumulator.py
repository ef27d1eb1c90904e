"""Sums of a sliding window in bounded memory: a ring of planes along the first axis, along which nnU-Net's loop moves.

nnU-Net visits the tiles in the order of the first axis. Once it has passed a plane, the plane's sums are final: they
are divided, handed on and forgotten. Values, types and order of all operations are nnU-Net's, so the logits are too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

Slicer = tuple[slice | int, ...]

# of the sums of a stage with several rows of tiles, as slices of a volume are; one row is always in memory
STAGE_BYTES = 2**28
# of finished logits that are handed on at a time, at least one plane; export copies them
FINISHED_BYTES = 2**25


class Accumulator:
    """Weighted sums of the tiles' logits, of each fold, for some consecutive planes.

    Args:
        folds, classes: number of each.
        planes: planes that are kept at a time.
        plane: voxels per axis of a plane.
        device: where the sums are.
    """

    def __init__(self, folds: int, classes: int, planes: int, plane: Sequence[int], device: torch.device) -> None:
        # the ring: plane i of the image is at i modulo the number of planes
        self._sums = [torch.zeros(classes, planes, *plane, dtype=torch.half, device=device) for _ in range(folds)]
        self._weights = torch.zeros(planes, *plane, dtype=torch.half, device=device)
        self._planes, self._start = planes, 0

    def add(self, fold: int, slicer: Slicer, logits: Tensor, weights: Tensor | float) -> None:
        """Add a tile.

        Args:
            fold: index of the fold.
            slicer: where it is in the image, (all channels, first axis, others).
            logits: (classes, *patch_size), already weighted.
            weights: (*patch_size), or one for all; they are the same for each fold, so those of the first count.
        """
        for there, here in self._pieces(slicer[1]):
            part = logits if here is None else logits[:, here]
            position = (there, *slicer[2:])
            of_all_classes = (slice(None), *position)
            self._sums[fold][of_all_classes] += part
            if fold == 0:
                part_weights = weights if here is None or not isinstance(weights, Tensor) else weights[here]
                self._weights[position] += part_weights

    def _pieces(self, planes: slice | int) -> Iterator[tuple[slice | int, slice | None]]:
        """Yield where planes are in the ring, and which of the tile's planes these are."""
        if isinstance(planes, int):
            yield planes % self._planes, None
            return
        first, count = planes.start % self._planes, planes.stop - planes.start
        before = min(count, self._planes - first)
        yield slice(first, first + before), slice(0, before)
        if before < count:
            yield slice(0, count - before), slice(before, count)

    def finish(self, until: int) -> list[Tensor]:
        """Return the logits of each fold for the planes up to ``until``, (classes, planes, *plane), and forget them.

        Raises:
            ValueError: if a sum exceeds float16.
        """
        pieces = [piece for piece, _ in self._pieces(slice(self._start, until))]
        self._start = until
        finished = []
        for sums in self._sums:
            parts = [sums[:, piece] / self._weights[piece] for piece in pieces]
            finished.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
            if torch.isinf(finished[-1]).any():
                raise ValueError(
                    "the logits exceed float16, in which nnU-Net sums them: infinity in the prediction; the weights "
                    "are likely those of a training that diverged"
                )
        for piece in pieces:
            self._weights[piece] = 0
            for sums in self._sums:
                sums[:, piece] = 0
        return finished


def planes_of(slicer: Slicer) -> tuple[int, int]:
    """Return the first plane of a tile and the one after its last."""
    planes = slicer[1]
    return (planes, planes + 1) if isinstance(planes, int) else (planes.start, planes.stop)


def stages(slicers: Sequence[Slicer], bytes_per_plane: int) -> list[list[Slicer]]:
    """Divide the tiles into consecutive stages of whole rows; a row has the tiles of one position on the first axis.

    Args:
        slicers: nnU-Net's tiles, in order.
        bytes_per_plane: of the sums.
    """
    found: list[list[Slicer]] = []
    for slicer in slicers:
        first, last = planes_of(slicer)
        start = planes_of(found[-1][0])[0] if found else -1
        in_row = bool(found) and first == planes_of(found[-1][-1])[0]
        fits = bool(found) and last - first == 1 and (last - start) * bytes_per_plane <= STAGE_BYTES
        if in_row or fits:
            found[-1].append(slicer)
        else:
            found.append([slicer])
    return found


def pad(image: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad an image with zeros to at least the patch, the image in the middle, as nnU-Net does.

    Args:
        image: (channels, *spatial).
        patch_size: voxels of the last axes.

    Returns:
        the padded image, and where in it the image is, a slice for each spatial axis.
    """
    shape = image.shape[1:]
    wanted = [*shape[: len(shape) - len(patch_size)], *patch_size]
    lacking = [max(0, size - n) for size, n in zip(wanted, shape, strict=True)]
    inside = tuple(slice(lack // 2, lack // 2 + n) for lack, n in zip(lacking, shape, strict=True))
    if not any(lacking):
        return image, inside
    amounts = [n for lack in reversed(lacking) for n in (lack // 2, lack - lack // 2)]
    return nn.functional.pad(image, amounts), inside
