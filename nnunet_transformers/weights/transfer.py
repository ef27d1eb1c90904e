"""Fit an encoder's weights into a network of another patch, window, stride or number of channels."""

from __future__ import annotations

from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from ..architectures import SegmentationNetwork
from ..architectures.layers import (
    PositionEmbedding,
    RelativePositionBias,
    resize_bias_table,
    resize_position_embedding,
)
from .encoder import EncoderCheckpoint
from .load_report import LoadReport

Fitted = tuple[Tensor | None, str]


def load_encoder_weights(network: SegmentationNetwork, checkpoint: EncoderCheckpoint, source: str = "") -> LoadReport:
    """Start a network from an encoder's checkpoint, in place.

    Bias tables and position embeddings are interpolated to the network's windows and grids, the kernel of a patch
    embedding to its stride, and the first layer is fitted to its number of channels. What fits in no way is left at
    its initialisation, and the report says why.

    Args:
        network: to start; its decoder as well where the method trained one.
        checkpoint: the weights.
        source: where they came from, for the report.

    Returns:
        what was loaded, adapted, left fresh and unused.

    Raises:
        ValueError: if the weights are of another family of networks or of other dimensions.
    """
    origin = checkpoint.build_network()
    if type(origin) is not type(network):
        raise ValueError(
            f"the weights are of {type(origin).__name__} ({checkpoint.name}), the network is {type(network).__name__}"
        )
    if len(origin.patch_size) != len(network.patch_size):
        raise ValueError(
            f"the weights are of a {len(origin.patch_size)}D network, this one is {len(network.patch_size)}D"
        )
    report = LoadReport(source or f"{checkpoint.method} of {checkpoint.name}, {checkpoint.num_cases} images")
    in_proj = f"{network.keys_to_in_proj[0]}.weight"
    remaining = dict(checkpoint.weights)
    # parameters and the statistics of batch norms, which share their memory with the network
    for name, parameter in network.state_dict().items():
        if name not in remaining:
            report.fresh[name] = "not in the source"
            continue
        value, how = _fit(remaining.pop(name), parameter, name, network, origin, in_proj)
        if value is None:
            report.fresh[name] = how
            continue
        parameter.copy_(value)
        if how:
            report.adapted[name] = how
        else:
            report.loaded.append(name)
    report.unused = list(remaining)
    return report


def _fit(value: Tensor, parameter: Tensor, name: str, network: nn.Module, origin: nn.Module, in_proj: str) -> Fitted:
    owner = name.rpartition(".")[0]
    module = network.get_submodule(owner)
    if isinstance(module, RelativePositionBias) and value.shape[1] == parameter.shape[1]:
        # tables of different windows may have as many rows
        before = origin.get_submodule(owner).table_shape
        if before != module.table_shape:
            return resize_bias_table(value, before, module.table_shape), sizes_changed(
                "offsets", before, module.table_shape
            )
    if value.shape == parameter.shape:
        return value, ""
    if isinstance(module, PositionEmbedding) and value.shape[-1] == parameter.shape[-1]:
        grid = tuple(value.shape[1:-1])
        return resize_position_embedding(value, grid, module.grid_size), sizes_changed("grid", grid, module.grid_size)
    if name == in_proj and value.shape[0] == parameter.shape[0] and value.dim() == parameter.dim():
        return fit_first_layer(value, parameter)
    return None, f"shape {tuple(value.shape)} in the source, {tuple(parameter.shape)} here"


def fit_first_layer(value: Tensor, parameter: Tensor) -> Fitted:
    """Kernel and channels of a layer that sees the image, so that it answers to a flat image as before.

    Args:
        value: (out, channels, *kernel), of the source.
        parameter: the layer's, with as many outputs.

    Returns:
        the values fitted, and what was changed, for people.
    """
    changes = []
    kernel, wanted = value.shape[2:], parameter.shape[2:]
    if kernel != wanted:
        mode = {2: "bilinear", 3: "trilinear"}[len(kernel)]
        value = F.interpolate(value.float(), size=tuple(wanted), mode=mode) * (prod(kernel) / prod(wanted))
        changes.append(sizes_changed("kernel", kernel, wanted))
    channels, wanted_channels = value.shape[1], parameter.shape[1]
    if channels != wanted_channels:
        value = value.sum(1, keepdim=True).expand(-1, wanted_channels, *wanted) / wanted_channels
        changes.append(f"channels {channels} to {wanted_channels}")
    return value.to(parameter.dtype), ", ".join(changes)


def sizes_changed(what: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    """ "grid 4x4 to 8x8", for reports."""
    return f"{what} {'x'.join(map(str, before))} to {'x'.join(map(str, after))}"
