"""Activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._export import is_exporting

# elements of a piece: what stays in a CPU's cache, what keeps another device busy, and what does where memory is short
CACHED, BUSY, SHORT = 2**20, 2**25, 2**22


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, active: bool) -> Tensor:
    """Call ``function(*inputs)``; if ``active``, backward recomputes its intermediates rather than keeping them.

    The recomputation draws the same random numbers. Not for batch norm, which would count a batch twice.
    """
    if active and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def in_pieces(
    function: Callable[[Tensor], Tensor], tokens: Tensor, elements: int, activation_checkpointing: bool = False
) -> Tensor:
    """Apply a pointwise function to one piece of the sequence at a time.

    This is for functions whose intermediates far exceed input and output. Backward recomputes the intermediates of
    each piece, so that memory holds those of one piece only. On CPU they stay in cache, which saves more time than the
    recomputation takes.

    Args:
        function: (batch, length, channels) to (batch, length, any), each token independently.
        tokens: (batch, length, channels).
        elements: elements of the intermediates per token.
        activation_checkpointing: memory is short: use smaller pieces, and recompute a single piece, too.
    """
    if is_exporting() or torch.jit.is_tracing():
        return function(tokens)
    pieces = tokens.split(max(1, _piece_size(tokens, activation_checkpointing) // (tokens.shape[0] * elements)), dim=1)
    active = activation_checkpointing or len(pieces) > 1
    return torch.cat([recomputed(function, piece, active=active) for piece in pieces], dim=1)


def _piece_size(tokens: Tensor, activation_checkpointing: bool) -> int:
    """Elements of the intermediates of a piece."""
    # a fake tensor stands for one on a GPU, and a compiler fuses operations rather than relying on the cache
    if type(tokens) is Tensor and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        return CACHED
    return SHORT if activation_checkpointing else BUSY
