"""Conversion between images and cells, for networks that predict the voxels of each cell (MAE)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def patchify(image: Tensor, grid: Sequence[int]) -> Tensor:
    """Cut images into the cells of a grid.

    Args:
        image: (batch, channels, *size).
        grid: cells per axis, which divide the size.

    Returns:
        (batch, cells, channels * voxels of a cell); cells and voxels are in row-major order.

    Examples:
        >>> patchify(torch.arange(8.0).view(1, 1, 2, 4), (1, 2))
        tensor([[[0., 1., 4., 5.],
                 [2., 3., 6., 7.]]])
    """
    batch, channels, *size = image.shape
    split = [n for g, s in zip(grid, size, strict=True) for n in (g, s // g)]
    ndim = len(size)
    image = image.reshape(batch, channels, *split)
    cells, voxels = [2 + 2 * axis for axis in range(ndim)], [3 + 2 * axis for axis in range(ndim)]
    return image.permute(0, *cells, 1, *voxels).flatten(1 + ndim).flatten(1, ndim)


def unpatchify(cells: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Assemble an image from its cells; the inverse of ``patchify``.

    Args:
        cells: (batch, cells, channels * voxels of a cell).
        grid: cells per axis.
        size: voxels of the image per axis.

    Returns:
        (batch, channels, *size).
    """
    edges, ndim = [s // g for s, g in zip(size, grid, strict=True)], len(size)
    image = cells.reshape(len(cells), *grid, -1, *edges)
    axes = [axis for i in range(ndim) for axis in (1 + i, 2 + ndim + i)]
    return image.permute(0, 1 + ndim, *axes).reshape(len(cells), -1, *size)
