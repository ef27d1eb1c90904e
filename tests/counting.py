"""Multiply-adds as papers state them: by fvcore's rules, which count norms."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# fvcore's operations for each element of a norm with weight and bias
NORM = 5


def _norm(shape: Sequence[int], *_: object, **__: object) -> int:
    # the counter gives two for a multiply-add
    return 2 * NORM * prod(shape)


def published_multiply_adds(network: nn.Module, input_channels: int, patch_size: Sequence[int]) -> int:
    """Multiply-adds of a forward pass of one image: products, convolutions, attention and affine norms."""
    aten = torch.ops.aten
    # an instance norm is a batch norm of single images
    norms = dict.fromkeys((aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm), _norm)
    image = torch.empty(1, input_channels, *patch_size, device="meta")
    with FlopCounterMode(display=False, custom_mapping=norms) as counter, torch.no_grad():
        network.to("meta").eval().requires_grad_(False)(image)
    return counter.get_total_flops() // 2
