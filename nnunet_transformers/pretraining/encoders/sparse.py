"""Encoders of masked images for CNNs, whose layers compute visible places only.

Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling" (SparK), ICLR 2023,
https://arxiv.org/abs/2301.03580, section 3; in 3D Wald et al., "Revisiting MAE pre-training for 3D medical image
segmentation", CVPR 2025, https://arxiv.org/abs/2410.23132. A dense convolution whose output is masked again equals a
sparse one. Otherwise visible features would spread into the mask, layer by layer, and zeros would shift the norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from math import prod
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ...architectures import SegmentationNetwork, create_encoder
from ...architectures.layers.checkpointing import recomputing_within
from ...weights.primus import is_fixed_size
from .masked import (
    MaskedEncoder,
    VisibleEncoder,
    choose_grid,
    create_masked_encoder,
    enlarge,
    hide,
    map_shapes,
    visible_cells,
)

NEIGHBOURHOODS = (nn.Conv2d, nn.Conv3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)


def is_convolutional(*modules: nn.Module) -> bool:
    """Return whether all layers with weights are convolutions, or norms over places."""
    layers = [layer for module in modules for layer in module.modules() if [*layer.parameters(recurse=False)]]
    return all(isinstance(layer, (*NEIGHBOURHOODS, *NORMS)) for layer in layers)


@contextmanager
def sparse(modules: Sequence[nn.Module], mask: Tensor) -> Iterator[None]:
    """Let convolutions and pooling return 0 at masked places, and norms compute with the visible ones only.

    Maps that are coarser than the mask's cells are computed everywhere, since their places are partly visible.

    Args:
        modules: modules that contain the layers.
        mask: (batch, *grid), true for masked cells, as many in each image.

    Examples:
        >>> convolution, mask = nn.Conv2d(1, 1, 3, padding=1), torch.zeros(1, 2, 2).bool()
        >>> mask[0, 0, 0] = True
        >>> with sparse([convolution], mask):
        ...     convolution(torch.ones(1, 1, 4, 4))[0, 0, :2, :2].abs().sum().item()
        0.0
    """
    sizes: list[torch.Size] = []  # of the map in the norm that is running
    grid, kept = mask.shape[1:], visible_cells(mask)

    def masks(size: Sequence[int]) -> bool:
        return all(n % cells == 0 for n, cells in zip(size, grid, strict=True))

    @cache
    def places(size: torch.Size) -> Tensor:
        """Visible places in a flattened map of this size, (batch, 1, places), cell by cell."""
        split = [n for cells, length in zip(grid, size, strict=True) for n in (cells, length // cells)]
        order = [*range(0, len(split), 2), *range(1, len(split), 2)]
        of_cells = torch.arange(prod(size), device=mask.device).view(split).permute(order).reshape(prod(grid), -1)
        return of_cells[kept].flatten(1)[:, None]

    def hide_output(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return hide(output, mask) if masks(output.shape[2:]) else output

    def gather(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (features,), size = inputs, inputs[0].shape[2:]
        sizes.append(size)
        if not masks(size):
            return inputs
        visible = features.flatten(2).gather(2, places(size).expand(-1, features.shape[1], -1))
        # the norm sees images of (visible places, 1, ...)
        return (visible.unflatten(2, (-1, *[1] * (len(size) - 1))),)

    def scatter(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        size = sizes.pop()
        if not masks(size):
            return output
        everywhere = output.new_zeros(*output.shape[:2], prod(size))
        where = places(size).expand(-1, output.shape[1], -1)
        return everywhere.scatter(2, where, output.flatten(2)).unflatten(2, size)

    with ExitStack() as hooks:
        # once each, as a stem can be part of its encoder
        for layer in dict.fromkeys(layer for module in modules for layer in module.modules()):
            if isinstance(layer, NEIGHBOURHOODS):
                hooks.callback(layer.register_forward_hook(hide_output).remove)
            elif isinstance(layer, NORMS):
                hooks.callback(layer.register_forward_pre_hook(gather).remove)
                hooks.callback(layer.register_forward_hook(scatter).remove)
        yield


class SparseEncoder(nn.Module):
    """Encode images by a CNN that computes visible places only; learned tokens then fill the masked ones of each map.

    Args:
        network: result of ``create_encoder``; stem and encoder are convolutional.
        grid: cells per axis, of one of the feature maps.

    Attributes:
        grid: cells per axis; these cells are masked or visible.
        map_shapes: (channels, *grid) of each feature map, finest first.
    """

    def __init__(self, network: SegmentationNetwork, grid: Sequence[int]) -> None:
        super().__init__()
        self.network, self.grid, self.map_shapes = network, tuple(grid), map_shapes(network)
        masked = self.map_shapes[: 1 + [shape[1:] for shape in self.map_shapes].index(self.grid)]
        self.mask_tokens = nn.ParameterList(trunc_normal_(torch.zeros(dim), std=0.02) for dim, *_ in masked)

    def maps(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        """Encode images.

        Args:
            image: (batch, channels, *patch_size).
            mask: (batch, *grid), true for masked cells, as many in each image.

        Returns:
            all feature maps, (batch, channels, *grid), finest first.
        """
        modules = [self.network.stem, self.network.encoder]
        with sparse(modules, mask), recomputing_within(lambda: sparse(modules, mask)):
            maps = self.network.encode(hide(image, mask))
        for i, token in enumerate(self.mask_tokens):
            places = enlarge(mask, maps[i].shape[2:])[:, None]
            maps[i] = maps[i] + places * token.view(-1, *[1] * len(self.grid))
        return maps


def create_map_encoder(
    name: str,
    input_channels: int,
    patch_size: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
    mask_size: int = 16,
) -> MaskedEncoder | SparseEncoder | VisibleEncoder:
    """Build a network's encoder of masked images, all of whose feature maps are trained.

    Args:
        name: registered network, or a size of nnU-Net's Primus, whose tokens are masked.
        input_channels: image channels.
        patch_size: voxels per axis.
        overrides: arguments of a registered network.
        mask_size: largest edge of a masked cell in voxels, see ``choose_grid``.

    Raises:
        ValueError: as ``create_masked_encoder``.
    """
    if is_fixed_size(name, overrides):
        return create_masked_encoder(name, input_channels, patch_size, overrides)
    # create_encoder freezes what the deepest map does not depend on
    network = create_encoder(name, input_channels, patch_size, **(overrides or {})).requires_grad_()
    grid = choose_grid(network, mask_size)
    if is_convolutional(network.stem, network.encoder):
        return SparseEncoder(network, grid)
    return MaskedEncoder(network, input_channels, grid)
