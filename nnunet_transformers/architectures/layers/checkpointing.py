"""Activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._export import is_exporting

T = TypeVar("T")

# elements of a chunk's intermediates: few enough for a CPU's cache, enough to keep another device busy, and as few as
# keep it busy where memory is short
CPU_CHUNK, DEVICE_CHUNK, LOW_MEMORY_CHUNK = 2**20, 2**25, 2**22

# makes the context in which the backward pass recomputes
_context: ContextVar[Callable[[], AbstractContextManager[Any]] | None] = ContextVar("recomputation", default=None)


@contextmanager
def recomputing_within(make_context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let the backward pass recompute what is called in here within a context, such as one that changes the layers."""
    token = _context.set(make_context)
    try:
        yield
    finally:
        _context.reset(token)


def recomputed(function: Callable[..., T], *inputs: Tensor, active: bool) -> T:
    """Call ``function(*inputs)``; if ``active``, backward recomputes its intermediates rather than keeping them.

    The recomputation draws the same random numbers. Batch norm must not be recomputed: it would count a batch twice.
    """
    if active and torch.is_grad_enabled():
        make_context = _context.get()
        if make_context is None:  # a compiler does not take its default as an argument
            return checkpoint(function, *inputs, use_reentrant=False)
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), make_context()))
    return function(*inputs)


def apply_in_chunks(
    function: Callable[[Tensor], Tensor], tokens: Tensor, elements: int, activation_checkpointing: bool = False
) -> Tensor:
    """Apply a pointwise function to one chunk of the sequence at a time.

    It serves functions whose intermediates exceed input and output. Backward recomputes the intermediates of each
    chunk, so memory holds those of one chunk only. On CPU they stay in cache, which saves more time than the
    recomputation takes.

    Args:
        function: (batch, length, channels) to (batch, length, any), each token independently.
        tokens: (batch, length, channels).
        elements: elements of the intermediates per token.
        activation_checkpointing: use smaller chunks, and recompute even a single one, since memory is short.

    Returns:
        (batch, length, any).
    """
    if is_exporting() or torch.jit.is_tracing():
        return function(tokens)
    length = max(1, _chunk_size(tokens, activation_checkpointing) // (tokens.shape[0] * elements))
    chunks = tokens.split(length, dim=1)
    active = activation_checkpointing or len(chunks) > 1
    return torch.cat([recomputed(function, chunk, active=active) for chunk in chunks], dim=1)


def _chunk_size(tokens: Tensor, activation_checkpointing: bool) -> int:
    """Elements of a chunk's intermediates."""
    # a fake tensor stands for one on a GPU, and a compiler fuses operations rather than relying on the cache
    if type(tokens) is Tensor and tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        return CPU_CHUNK
    return LOW_MEMORY_CHUNK if activation_checkpointing else DEVICE_CHUNK
