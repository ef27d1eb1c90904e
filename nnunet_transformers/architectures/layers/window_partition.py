"""Shifted windows over a token grid, as one gather each way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowPartition(nn.Module):
    """Sort the tokens of a grid into (shifted) attention windows and back.

    Padding, rolling and partitioning (Swin Transformer, https://arxiv.org/abs/2103.14030, section 3.2) are folded
    into one index that is computed once; applying it is a single copy. An axis whose grid is no larger than the
    window has one window of the grid's size and no shift.

    Args:
        grid_size: tokens per axis.
        window_size: tokens per window and axis, clamped to the grid.
        shifted: shift by half a window, and mask pairs of tokens from opposite edges that the shift brings together.
        mask_padding: also mask the tokens that pad the grid to a multiple of the window.

    Attributes:
        window_size, padded_size, shift: the clamped window, the grid padded to whole windows and the shift, per axis.
        num_windows, window_length: windows in the grid and tokens in each.
        mask: additive mask (num_windows, 1, window_length, window_length), 0 or minus infinity, or None where nothing
            is masked. The releases use -100, which is equivalent unless scores differ by about as much.
    """

    def __init__(
        self, grid_size: Sequence[int], window_size: Sequence[int], shifted: bool, mask_padding: bool = False
    ) -> None:
        super().__init__()
        self.grid_size = tuple(grid_size)
        self.window_size = tuple(min(w, g) for w, g in zip(window_size, grid_size, strict=True))
        shift = tuple(w // 2 if shifted and w < g else 0 for w, g in zip(self.window_size, self.grid_size, strict=True))
        padded = tuple(-(-g // w) * w for w, g in zip(self.window_size, self.grid_size, strict=True))
        self.padded_size, self.shift = padded, shift
        self.window_length = prod(self.window_size)
        self.num_windows = prod(padded) // self.window_length
        self.has_padding = padded != self.grid_size

        length = prod(self.grid_size)
        tokens = torch.arange(length).view(self.grid_size)
        for axis, (size, grid) in enumerate(zip(padded, self.grid_size, strict=True)):
            # index `length` is the zero row that every padding token reads
            if size > grid:
                fill = (*tokens.shape[:axis], size - grid, *tokens.shape[axis + 1 :])
                tokens = torch.cat([tokens, torch.full(fill, length)], dim=axis)
        tokens = tokens.roll([-s for s in shift], dims=list(range(len(padded))))
        # constants, but no buffers: DistributedDataParallel sends those to every process in every step
        self.to_windows = self._into_windows(tokens).flatten()
        # position of each token in window order; padding sorts to the end and is dropped
        self.to_tokens = torch.argsort(self.to_windows, stable=True)[:length]
        self.mask = self._region_mask(length if mask_padding and self.has_padding else None)

    def _into_windows(self, tokens: Tensor) -> Tensor:
        """(*padded grid) to (num_windows, window_length)."""
        ndim = len(self.window_size)
        split = [n for size, w in zip(tokens.shape, self.window_size, strict=True) for n in (size // w, w)]
        order = [*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2)]
        return tokens.reshape(split).permute(order).reshape(self.num_windows, self.window_length)

    def _region_mask(self, pad_index: int | None) -> Tensor | None:
        if not any(self.shift) and pad_index is None:
            return None
        region = torch.zeros(self.padded_size, dtype=torch.long)
        for axis, (size, s) in enumerate(zip(self.padded_size, self.shift, strict=True)):
            # only the last window of an axis holds tokens from both ends of the image: two regions tell them apart
            wrapped = (torch.arange(size) >= size - s).long() if s else torch.zeros(size, dtype=torch.long)
            region = region * 2 + wrapped.view([-1 if a == axis else 1 for a in range(region.ndim)])
        region = self._into_windows(region)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        if pad_index is not None:
            is_padding = (self.to_windows == pad_index).view(self.num_windows, 1, self.window_length)
            # a padding token attends to itself, or its softmax would be NaN; its output is dropped
            apart = (apart | is_padding) & ~torch.eye(self.window_length, dtype=torch.bool)
        return torch.zeros(apart.shape).masked_fill(apart, -torch.inf).unsqueeze(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowPartition:
        super()._apply(fn, recurse)
        self.to_windows, self.to_tokens = fn(self.to_windows), fn(self.to_tokens)
        # by three of its axes: a memory format of volumes takes no four
        self.mask = None if self.mask is None else fn(self.mask.squeeze(1)).unsqueeze(1)
        return self

    def partition(self, tokens: Tensor) -> Tensor:
        """(batch, length, channels) to (batch, num_windows, window_length, channels)."""
        if self.has_padding:
            tokens = F.pad(tokens, (0, 0, 0, 1))
        windows = tokens.index_select(1, self.to_windows)
        return windows.view(tokens.shape[0], self.num_windows, self.window_length, tokens.shape[2])

    def reverse(self, windows: Tensor) -> Tensor:
        """(batch, num_windows, window_length, channels) to (batch, length, channels)."""
        return windows.flatten(1, 2).index_select(1, self.to_tokens)

    def roll(self, grid_map: Tensor) -> Tensor:
        """Pad and shift a map (batch, *grid_size, channels) to (batch, *padded_size, channels), as for windows."""
        fill = [n for p, g in zip(self.padded_size[::-1], self.grid_size[::-1], strict=True) for n in (0, p - g)]
        axes = list(range(1, 1 + len(self.shift)))
        return F.pad(grid_map, (0, 0, *fill)).roll([-s for s in self.shift], axes)

    def unroll(self, rolled: Tensor) -> Tensor:
        """Undo ``roll``: (batch, *padded_size, channels) to (batch, *grid_size, channels)."""
        grid_map = rolled.roll(self.shift, list(range(1, 1 + len(self.shift))))
        for axis, size in enumerate(self.grid_size, start=1):
            grid_map = grid_map.narrow(axis, 0, size)
        return grid_map

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}, window_size={self.window_size}, num_windows={self.num_windows}"
