"""Learned absolute position embeddings with the shape of their token grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """One learned vector for each token of a grid.

    The parameter has the grid's shape, so that a state dict states the grid of training and the embeddings can be
    resized along the axes. Embeddings flattened to (1, prod(grid_size), dim), as in releases, load as well.

    Args:
        grid_size: tokens per axis, two or three of them.
        dim: channels.
    """

    def __init__(self, grid_size: Sequence[int], dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, *grid_size, dim))
        trunc_normal_(self.weight, std=0.02)
        self.register_load_state_dict_pre_hook(_unflatten)

    @property
    def grid_size(self) -> tuple[int, ...]:
        """Tokens per axis."""
        return tuple(self.weight.shape[1:-1])

    def no_weight_decay(self) -> set[str]:
        """The embeddings."""
        return {"weight"}

    def forward(self, tokens: Tensor, grid_size: Sequence[int] | None = None) -> Tensor:
        """Add the embeddings to tokens, (batch, prod(grid_size), dim).

        Args:
            tokens: of the grid's size, or of ``grid_size``.
            grid_size: another grid, to which the embeddings are interpolated as in DINO's and UniMiSS's releases:
                bicubically in 2D, trilinearly in 3D.
        """
        weight: Tensor = self.weight
        if grid_size is not None and tuple(grid_size) != self.grid_size:
            mode = {2: "bicubic", 3: "trilinear"}[len(grid_size)]
            weight = F.interpolate(weight.movedim(-1, 1), tuple(grid_size), mode=mode, align_corners=False)
            weight = weight.movedim(1, -1)
        return tokens + weight.flatten(1, -2)

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}, dim={self.weight.shape[-1]}"


def _unflatten(module: PositionEmbedding, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    key = f"{prefix}weight"
    expected = module.weight.shape
    if key in state_dict and state_dict[key].shape == (1, prod(module.grid_size), expected[-1]):
        state_dict[key] = state_dict[key].view(expected)


def resize_position_embedding(tensor: Tensor, from_grid: Sequence[int], to_grid: Sequence[int]) -> Tensor:
    """Interpolate position embeddings from one grid to another, linearly along every axis.

    Flattened embeddings are laid out on their grid first: interpolating the flat axis would mix the ends of rows.

    Args:
        tensor: (1, *from_grid, dim), or flattened to (1, prod(from_grid), dim); without a class token's row.
        from_grid: tokens per axis that ``tensor`` belongs to.
        to_grid: wanted tokens per axis.

    Returns:
        (1, *to_grid, dim).

    Raises:
        ValueError: if the grids have different numbers of axes or ``tensor`` does not belong to ``from_grid``.
    """
    from_grid, to_grid = tuple(from_grid), tuple(to_grid)
    if len(from_grid) != len(to_grid) or len(from_grid) not in (2, 3):
        raise ValueError(f"cannot resize position embeddings from grid {from_grid} to {to_grid}: 2D to 2D or 3D to 3D")
    if tensor.shape[:-1] not in ((1, *from_grid), (1, prod(from_grid))):
        raise ValueError(
            f"position embeddings of shape {tuple(tensor.shape)} do not belong to grid {from_grid}, which has "
            f"{prod(from_grid)} tokens; give the grid they were trained on, without a class token's row"
        )
    tensor = tensor.view(1, *from_grid, tensor.shape[-1])
    if from_grid == to_grid:
        return tensor
    mode = {2: "bilinear", 3: "trilinear"}[len(to_grid)]
    resized = F.interpolate(tensor.movedim(-1, 1).float(), size=to_grid, mode=mode, align_corners=False)
    return resized.movedim(1, -1).to(tensor.dtype).contiguous()


def fit_position_embeddings(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Resize the position embeddings in a state dict to the grids of a network.

    Args:
        state_dict: weights by the network's names, position embeddings laid out on the grid they were trained on.
        network: has a ``PositionEmbedding`` for each of them.

    Returns:
        a copy with the embeddings resized and everything else as it was.

    Raises:
        ValueError: if an embedding is flattened and has another number of tokens than the network's grid.
    """
    fitted = dict(state_dict)
    for name, module in network.named_modules():
        key = f"{name}.weight" if name else "weight"
        if not isinstance(module, PositionEmbedding) or key not in fitted:
            continue
        tensor = fitted[key]
        flat_length = prod(module.grid_size)
        if tensor.dim() != 3:
            fitted[key] = resize_position_embedding(tensor, tensor.shape[1:-1], module.grid_size)
        elif tensor.shape[1] != flat_length:
            raise ValueError(
                f"{key} is flattened to {tensor.shape[1]} tokens, the network's grid {module.grid_size} has "
                f"{flat_length}; load it into a network of its own patch size first, whose state dict states the grid"
            )
    return fitted
