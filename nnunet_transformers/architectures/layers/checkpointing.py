"""Activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...cpu.dispatch import may_choose_kernel
from ._export import is_exporting

# elements of a piece: what stays in a CPU's cache, what keeps another device busy, and what does where memory is short
CACHED, BUSY, SHORT = 2**20, 2**25, 2**22


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, active: bool) -> Tensor:
    """``function(*inputs)``; if ``active``, what backward needs of its inside is computed again rather than kept.

    The random numbers of the first time are drawn again. Not for batch norm, which would count a batch twice.
    """
    if active and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def in_pieces(
    function: Callable[[Tensor], Tensor], tokens: Tensor, elements: int, activation_checkpointing: bool = False
) -> Tensor:
    """``function`` of each token, a piece of the sequence at a time, where its inside is far larger than its ends.

    Backward computes the inside of each piece again, so that no more than a piece's is ever there. On CPU it then stays
    in cache, which saves more time than computing it twice takes.

    Args:
        function: (batch, length, channels) to (batch, length, any), every token by itself.
        tokens: (batch, length, channels).
        elements: numbers that it makes inside of each token.
        activation_checkpointing: memory is short: smaller pieces, and compute again what is one piece, too.
    """
    if is_exporting() or torch.jit.is_tracing():
        return function(tokens)
    size = CACHED if may_choose_kernel(tokens, tokens) else SHORT if activation_checkpointing else BUSY
    pieces = tokens.split(max(1, size // (tokens.shape[0] * elements)), dim=1)
    active = activation_checkpointing or len(pieces) > 1
    return torch.cat([recomputed(function, piece, active=active) for piece in pieces], dim=1)
