"""FlexAttention beside the kernel that PyTorch selects where a position bias refuses the flash kernel."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_transformers.architectures.layers.flex_attention import biased_flex_attention
from nnunet_transformers.benchmarking.machine import mark, seconds_between

from .kernels import RUNS, Call, calls_of
from .rows import Row

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def selected_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """scaled_dot_product_attention as window attention calls it."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype), scale=scale)


def flex(row: Row) -> dict[str, Any]:
    """Time the biased calls with the most and the fewest windows to a bias, and compare results and gradients.

    The gradient of the bias is a sum over the windows that share it. On a CPU, where FlexAttention has no gradient, the
    forward pass alone is run.
    """
    calls, dtype, patch_size = calls_of(row)
    biased = [call for call in calls if call.bias is not None]
    # of the calls with the most scores, which take the most time
    largest = max(map(_scores, biased))
    chosen = sorted((call for call in biased if _scores(call) == largest), key=lambda call: call.query.shape[0])
    pair = dict.fromkeys((chosen[-1], chosen[0]))
    return {"patch_size": patch_size, "calls": [_compare(call, calls[call], dtype, row) for call in pair]}


def _scores(call: Call) -> int:
    return prod(call.query.shape[:-1]) * call.key.shape[-2]


def _compare(call: Call, count: int, dtype: torch.dtype, row: Row) -> dict[str, Any]:
    q, k, v, bias = (operand for operand in call.operands(dtype, row.device))
    assert q is not None and k is not None and v is not None and bias is not None
    # the network's is float32, and cast for scaled_dot_product_attention
    operands = (q, k, v, bias[0].detach().float().requires_grad_())
    scale = call.scale if call.scale is not None else q.shape[-1] ** -0.5
    results, seconds = [], {}
    for name, attend in (("selected", selected_attention), ("flex", biased_flex_attention)):
        seconds[name], result = _run(attend, operands, scale, row)
        results.append(result)
    errors = [float((ours - theirs).abs().max() / theirs.abs().max()) for theirs, ours in zip(*results, strict=True)]
    return {
        "count": count,
        "query": call.query.shape,
        "bias": call.bias.shape if call.bias else None,
        "milliseconds": {name: 1e3 * value for name, value in seconds.items()},
        "largest_error": max(errors),
    }


def _run(attend: Attention, operands: tuple[Tensor, ...], scale: float, row: Row) -> tuple[float, list[Tensor]]:
    """Median seconds of a call, and its result with the operands' gradients."""
    device, times = torch.device(row.device), []
    trains = row.device != "cpu"
    result: list[Tensor] = []
    for _ in range(2 if row.tiny else 1 + RUNS):
        start = mark(device)
        with torch.set_grad_enabled(trains):
            out = attend(*(operands if trains else [t.detach() for t in operands]), scale)  # type: ignore[call-arg]
        gradients = torch.autograd.grad(out, operands, out.detach()) if trains else ()
        times.append(seconds_between(start, mark(device)))
        result = [t.detach().float() for t in (out, *gradients)]
    return median(times[1:]), result
