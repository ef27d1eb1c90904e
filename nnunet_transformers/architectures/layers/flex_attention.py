"""FlexAttention for windows with a position bias, which the flash kernel refuses; off unless it is switched on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# of one network
SHAPES = 64


def biased_flex_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Compute softmax(scale q k^T + bias) v.

    Args:
        q, k, v: (batch, heads, length, head_dim).
        bias: (heads, length, length), shared by the batch; of float32 in half precision too, as scores are.
        scale: factor of the scores.

    Returns:
        (batch, heads, length, head_dim).
    """

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias[head, query, key]

    from torch.nn.attention.flex_attention import flex_attention

    # which alone is plain PyTorch, and part of what a compiled network compiles
    attend: Callable[..., Any] = flex_attention
    if q.device.type != "cpu" and not torch.compiler.is_compiling():
        attend = _compiled()
    out: Tensor = attend(q, k, v, score_mod=add_bias, scale=scale)
    return out


@cache
def _compiled() -> Callable[..., Any]:
    """FlexAttention, compiled for each shape; a network has more of them than Dynamo's limit for a function."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(*operands: Any, **options: Any) -> Any:
        with config.patch(recompile_limit=SHAPES):
            return compiled(*operands, **options)

    return attend
