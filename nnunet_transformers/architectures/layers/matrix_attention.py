"""Attention as plain matrix products, where no fused kernel can be used."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Compute softmax(scale q k^T + bias) v.

    Scores of float16 and bfloat16 inputs are float32, as in the fused kernels: float16 overflows above 65504, and
    bfloat16 resolves a score of 1000 to within 4.

    Args:
        q, k, v: (..., length, head_dim).
        scale: factor of the scores.
        bias: added to the scores, broadcast to (..., length, length).

    Returns:
        (..., length, head_dim), of the inputs' type.
    """
    if q.dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(q.device.type, enabled=False):
            bias = None if bias is None else bias.float()
            return matrix_attention(q.float(), k.float(), v.float(), scale, bias).to(q.dtype)
    scores = q * scale @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
