"""Adapters for ``transfer``, one for each kind of tensor that depends on patch, windows, stride or channels."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ..architectures.layers import (
    PositionEmbedding,
    RelativePositionBias,
    resize_bias_table,
    resize_position_embedding,
)
from ..architectures.mednext import upkern
from .transfer import Adapter


def bias_tables(network: nn.Module, shape_in_source: Callable[[str, Tensor], Sequence[int]]) -> Adapter:
    """Create an adapter that interpolates relative position bias tables to a network's windows.

    Args:
        network: network to load into.
        shape_in_source: returns the number of offsets per axis of a source table, given its name and value.
    """

    def adapt(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        module = _owner(network, name)
        # tables of different windows can have equally many rows; a different width has another number of heads
        if not isinstance(module, RelativePositionBias) or value.shape[1:] != tensor.shape[1:]:
            return None
        shape = tuple(shape_in_source(name, value))
        if prod(shape) != len(value):
            return None
        change = sizes_changed("offsets", shape, module.table_shape) if shape != module.table_shape else ""
        return resize_bias_table(value, shape, module.table_shape), change

    return adapt


def position_embeddings(network: nn.Module) -> Adapter:
    """Create an adapter that interpolates position embeddings (1, *grid, dim) to a network's token grids.

    Flattened ones, (1, prod(grid), dim), are laid out on the network's grid if they have as many tokens.

    Args:
        network: network to load into.
    """

    def adapt(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        module = _owner(network, name)
        if not isinstance(module, PositionEmbedding) or value.shape == tensor.shape:
            return None
        if value.shape == (1, prod(module.grid_size), tensor.shape[-1]):
            return value.view(tensor.shape), ""
        if value.dim() != tensor.dim() or value.shape[-1] != tensor.shape[-1]:
            return None
        grid = tuple(value.shape[1:-1])
        resized = resize_position_embedding(value, grid, module.grid_size)
        return resized, sizes_changed("grid", grid, module.grid_size)

    return adapt


def first_layers(names: Container[str]) -> Adapter:
    """Create an adapter for the convolutions that see the image, which fits their kernels and input channels.

    The response to a constant image whose channels are equal stays the same.

    Args:
        names: names of the weights, each (out, channels, *kernel).
    """

    def adapt(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        if name not in names or value.shape == tensor.shape:
            return None
        if value.dim() != tensor.dim() or value.shape[0] != tensor.shape[0]:
            return None
        changes = []
        kernel, new_kernel = value.shape[2:], tensor.shape[2:]
        if kernel != new_kernel:
            # along an axis that the new kernel has no extent on, the sum is exact
            flat = [axis for axis, length in enumerate(new_kernel, start=2) if length == 1]
            value = value.float().sum(flat, keepdim=True) if flat else value.float()
            if value.shape[2:] != new_kernel:
                mode, scale = {2: "bilinear", 3: "trilinear"}[len(kernel)], prod(value.shape[2:]) / prod(new_kernel)
                resized = F.interpolate(value, size=tuple(new_kernel), mode=mode) * scale
                # interpolation alone keeps the sum for whole ratios only
                axes = tuple(range(2, value.dim()))
                missing = (value.sum(axes, keepdim=True) - resized.sum(axes, keepdim=True)) / prod(new_kernel)
                value = resized + missing
            changes.append(sizes_changed("kernel", kernel, new_kernel))
        channels, new_channels = value.shape[1], tensor.shape[1]
        if channels != new_channels:
            value = value.sum(1, keepdim=True).expand(-1, new_channels, *new_kernel) / new_channels
            changes.append(f"channels {channels} to {new_channels}")
        return value.to(tensor.dtype), ", ".join(changes)

    return adapt


def pointwise_convolutions(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Adapt a 1x1 convolution to a linear layer or vice versa: shapes that differ only in axes of length 1."""
    if value.shape == tensor.shape or value.squeeze().shape != tensor.squeeze().shape:
        return None
    return value.reshape(tensor.shape), ""


def convolution_kernels(network: nn.Module) -> Adapter:
    """Create an adapter for kernels of a plan that convolves or down-samples along other axes: 3 and 1, or 2 and 1.

    The response to an image that is constant along these axes stays the same: their kernel is summed, or becomes the
    centre of the longer one. Kernels of transposed convolutions do not overlap, each voxel is of one of their elements:
    these are averaged, or repeated.

    Args:
        network: network to load into.
    """

    def adapt(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        if value.shape == tensor.shape or value.dim() != tensor.dim() or value.dim() < 4:
            return None
        if value.shape[:2] != tensor.shape[:2]:
            return None
        is_transposed = isinstance(_owner(network, name), _ConvTransposeNd)
        adapted = value
        for axis, (before, after) in enumerate(zip(value.shape[2:], tensor.shape[2:], strict=True), start=2):
            if after == 1:
                summed = adapted.sum(axis, keepdim=True)
                adapted = summed / before if is_transposed else summed
            elif before == 1 and is_transposed:
                adapted = adapted.repeat_interleave(after, axis)
            elif before == 1:
                zeros = adapted.new_zeros([*adapted.shape[:axis], after // 2, *adapted.shape[axis + 1 :]])
                adapted = torch.cat([zeros, adapted, zeros], axis)
        if adapted.shape != tensor.shape:
            return None
        return adapted, sizes_changed("kernel", value.shape[2:], tensor.shape[2:])

    return adapt


def enlarged_kernels(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Adapt a depth-wise kernel to a larger one, as MedNeXt's UpKern does."""
    before, after = value.shape[2:], tensor.shape[2:]
    if value.shape[:2] != tensor.shape[:2] or value.shape[1:2] != (1,) or len(before) != len(after):
        return None
    if before == after or any(old > new for old, new in zip(before, after, strict=True)):
        return None
    return upkern(value, after), sizes_changed("kernel", before, after)


def depthwise_kernels(suffix: str) -> Adapter:
    """Create an adapter that crops 2D depth-wise kernels to smaller ones and inflates them to 3D.

    In 3D they are repeated along the depth and divided by its length, so that the response to an image that is constant
    along the depth is that of the 2D kernel.

    Args:
        suffix: common ending of the names of the weights, each (channels, 1, *kernel).
    """

    def adapt(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        if not name.endswith(suffix) or value.dim() != 4 or tensor.shape[:2] != value.shape[:2]:
            return None
        height, width = value.shape[2:]
        new_height, new_width = tensor.shape[-2:]
        if value.shape == tensor.shape or new_height > height or new_width > width:
            return None
        top, left = (height - new_height) // 2, (width - new_width) // 2
        change = sizes_changed("kernel", value.shape[2:], tensor.shape[2:])
        value = value[:, :, top : top + new_height, left : left + new_width]
        if tensor.dim() == 5:
            value = value.unsqueeze(2).expand_as(tensor) / tensor.shape[2]
        return value, change

    return adapt


def inflated_kernels(name: str, then: Adapter) -> Adapter:
    """Create an adapter that inflates a 2D kernel to 3D, repeated along the depth and divided by its length.

    Args:
        name: name of the weight, (out, channels, *kernel).
        then: adapter for what remains to be changed.
    """

    def adapt(other: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        if other != name:
            return None
        if tensor.dim() != value.dim() + 1:
            return then(other, value, tensor)
        depth = tensor.shape[2]
        inflated = value.unsqueeze(2).expand(-1, -1, depth, *value.shape[2:]) / depth
        adapted, change = then(other, inflated, tensor) or (inflated, "")
        return adapted, ", ".join(filter(None, [f"inflated to {depth}", change]))

    return adapt


def sizes_changed(what: str, before: Sequence[int], after: Sequence[int]) -> str:
    """Describe a change of sizes for load reports: "grid 4x4 to 8x8"."""
    return f"{what} {'x'.join(map(str, before))} to {'x'.join(map(str, after))}"


def _owner(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])
