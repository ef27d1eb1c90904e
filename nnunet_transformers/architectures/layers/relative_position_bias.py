"""Learned relative position bias of window attention, in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """Bias for each head and each pair of tokens in a window (https://arxiv.org/abs/2103.14030, eq. 4).

    The table has one row per relative offset, so along each axis the pairs of a window are a Toeplitz matrix of its
    rows: overlapping slices, read without an index of window_length^2 rows. Their gradient is a sum over slices in
    place of a scatter, which is slow on CPU and, with atomic additions, not reproducible on CUDA.

    Args:
        table_window_size: window that the table is made for, per axis; it has prod(2 w - 1) rows.
        window_size: window in use, at most the table's; smaller ones read the table's centre.
        num_heads: attention heads.
        init_std: standard deviation of the truncated normal initialisation, 0 for zeros.
        reference_compat: read a smaller window as the released QT-UNet does: from the first rows and columns of the
            table window's pairs, which have the wrong offsets for most pairs.
    """

    # keep the bias under no_grad as well, where the memory of a prediction is counted
    keeps_without_grad = False

    def __init__(
        self,
        table_window_size: Sequence[int],
        window_size: Sequence[int],
        num_heads: int,
        init_std: float = 0.02,
        reference_compat: bool = False,
    ) -> None:
        super().__init__()
        self.table_window_size = tuple(table_window_size)
        self.table_shape = tuple(2 * w - 1 for w in table_window_size)
        self.window_size = tuple(window_size)
        self.num_heads = num_heads
        self.pair_window_size = tuple(table_window_size) if reference_compat else self.window_size
        self.table = nn.Parameter(torch.zeros(prod(self.table_shape), num_heads))
        if init_std:
            trunc_normal_(self.table, std=init_std)
        self._cached: Tensor | None = None
        self._cached_for: tuple | None = None

    def no_weight_decay(self) -> set[str]:
        """The table."""
        return {"table"}

    def forward(self, mask: Tensor | None = None) -> Tensor:
        """Additive attention bias.

        Args:
            mask: (num_windows, 1, window_length, window_length), added to the bias of every head.

        Returns:
            (heads, window_length, window_length) without a mask, else
            (num_windows, heads, window_length, window_length). Cached between calls of a prediction: in eval mode
            under ``torch.inference_mode``. Elsewhere weights may change without a sign of it, as by ``.data`` in a
            teacher, or by a fused optimiser.
        """
        # first and alone: the compiler cannot trace the questions about inference mode below
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            return self._compute(mask)
        is_prediction = torch.is_inference_mode_enabled() or (self.keeps_without_grad and not torch.is_grad_enabled())
        if self.training or not is_prediction or self.table.is_inference():
            return self._compute(mask)
        current = (self.table._version, self.table.data_ptr(), self.table.device, self.table.dtype, id(mask))
        if self._cached is None or self._cached_for != current:
            self._cached, self._cached_for = self._compute(mask), current
        return self._cached

    def _compute(self, mask: Tensor | None) -> Tensor:
        axes = range(1, 1 + len(self.window_size))
        bias = self.table.T.view(self.num_heads, *self.table_shape).flip(list(axes))
        # row r, column j of the slices is offset window - 1 - r - j: the rows are those of the bias, last one first
        for axis, table, window in zip(axes, self.table_window_size, self.pair_window_size, strict=True):
            bias = bias.narrow(axis, table - window, 2 * window - 1).unfold(axis, window, 1)
        pairs = prod(self.pair_window_size)
        length = prod(self.window_size)
        bias = bias.flip(list(axes)).reshape(self.num_heads, pairs, pairs)[:, :length, :length]
        return bias if mask is None else bias + mask

    def train(self, mode: bool = True) -> RelativePositionBias:
        self._cached = self._cached_for = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cached": None, "_cached_for": None}

    def extra_repr(self) -> str:
        return f"table_shape={self.table_shape}, window_size={self.window_size}, num_heads={self.num_heads}"


def resize_bias_table(table: Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> Tensor:
    """Resize a bias table to another window by linear interpolation over the offsets.

    Args:
        table: (prod(shape), heads).
        shape: offsets per axis of ``table``, 2 w - 1 for a window of w.
        new_shape: wanted offsets per axis; with one axis more than ``shape`` the table is repeated along the new
            first axis.

    Returns:
        (prod(new_shape), heads).
    """
    heads = table.shape[1]
    grid = table.T.reshape(1, heads, *shape)
    in_plane = tuple(new_shape[-len(shape) :])
    if tuple(shape) != in_plane:
        mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
        grid = F.interpolate(grid.float(), size=in_plane, mode=mode, align_corners=True).to(table.dtype)
    if len(new_shape) > len(shape):
        grid = grid.unsqueeze(2).expand(1, heads, *new_shape)
    return grid.reshape(heads, -1).T
