"""Attention on CPU: a fused gradient of the window bias, and a backward pass of few heads on all threads.

PyTorch's fused CPU kernel has no gradient for the bias, so in training ``scaled_dot_product_attention`` falls back to
full score matrices in main memory. Here forward uses the fused kernel, and backward recomputes the scores of a few
windows at a time, which stay in cache (FlashAttention's recomputation, https://arxiv.org/abs/2205.14135, section 3.1).
That takes about half the time of attention in a training step and stores no scores.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from ..architectures.layers.spatial_reduction_attention import SpatialReductionAttention
from ..architectures.layers.window_attention import WindowAttention
from .linear import linear

# scores of the windows that backward processes at once
CHUNK_ELEMENTS = 2**20
# chunks that a trace on fake tensors, which have no values, needs for the largest memory: each chunk overlaps with the
# one before, and the last of a sample may be smaller
TRACED_CHUNKS = 3
# queries per chunk below which more threads cost more than they save
MIN_CHUNK_QUERIES = 1024


def is_applicable(q: Tensor, bias: Tensor) -> bool:
    """Whether a gradient of the bias is required on CPU, which PyTorch's fused kernel lacks.

    Fake tensors are included, unlike in ``may_choose_kernel``, since the kernel saves memory as well.
    """
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and bias.dtype == q.dtype
        and torch.is_grad_enabled()
        and bias.requires_grad
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class WindowAttentionFunction(torch.autograd.Function):
    """Compute softmax(scale q k^T + bias + mask) v in each window."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Attend.

        Args:
            q, k, v: (batch, windows, heads, length, head_dim).
            bias: (heads, length, length).
            mask: (windows, 1, length, length), 0 where a pair may attend, or None.
            scale: factor of the scores.

        Returns:
            as ``q``.
        """
        # windows with a mask of their own join the heads, as the kernel broadcasts over the batch only
        start, end = (0, 1) if mask is None else (1, 2)
        additive = bias[None] if mask is None else (bias + mask).flatten(0, 1)[None]
        out: Tensor
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.flatten(start, end), k.flatten(start, end), v.flatten(start, end), attn_mask=additive, scale=scale
        )
        out, logsumexp = out.reshape(q.shape), logsumexp.reshape(q.shape[:-1])
        ctx.save_for_backward(q, k, v, bias, out, logsumexp)
        ctx.mask, ctx.scale = mask, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, logsumexp = ctx.saved_tensors
        batch, windows, heads, length, _ = q.shape
        grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype) for _ in range(3))
        grad_bias = torch.zeros_like(bias)
        delta = (grad_out * out).sum(-1, keepdim=True)
        logsumexp = logsumexp.unsqueeze(-1)
        step = max(1, CHUNK_ELEMENTS // (heads * length * length))
        chunks = [(sample, slice(n, n + step)) for sample in range(batch) for n in range(0, windows, step)]
        if isinstance(q, FakeTensor):
            chunks = chunks[:TRACED_CHUNKS]
        for at in chunks:

            def rows(tensor: Tensor, at: tuple[int, slice] = at) -> Tensor:
                return tensor[at].flatten(0, 1)

            scaled_q, keys, grads = rows(q) * ctx.scale, rows(k), rows(grad_out)
            scores = torch.bmm(scaled_q, keys.transpose(1, 2)).unflatten(0, (-1, heads))
            # probabilities are at most 1; the clamp avoids overflow of masked pairs, which are zeroed next
            attention = scores.add_(bias).sub_(logsumexp[at]).clamp_max_(0).exp_()
            if ctx.mask is not None:
                attention.mul_(ctx.mask[at[1]] == 0)
            attention = attention.flatten(0, 1)
            torch.bmm(attention.transpose(1, 2), grads, out=rows(grad_v))
            grad_scores = torch.bmm(grads, rows(v).transpose(1, 2)).sub_(rows(delta)).mul_(attention)
            grad_bias += grad_scores.unflatten(0, (-1, heads)).sum(0)
            torch.bmm(grad_scores, keys, out=rows(grad_q))
            torch.bmm(grad_scores.transpose(1, 2), scaled_q, out=rows(grad_k))
        return grad_q.mul_(ctx.scale), grad_k, grad_v, grad_bias, None, None


class CPUWindowAttention(WindowAttention):
    """``WindowAttention`` through ``WindowAttentionFunction`` where its bias is trained."""

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused_attn and is_applicable(q, self.bias.table):
            out: Tensor = WindowAttentionFunction.apply(q, k, v, self.bias(), self.partition.mask, self.scale)
            return out
        return super()._mix(q, k, v)


class CPUSpatialReductionAttention(SpatialReductionAttention):
    """``SpatialReductionAttention`` through ``linear``, with a backward pass on all threads.

    The backward pass of PyTorch's fused kernel gives each head of each sample to one thread. Stages of one or two
    heads, which have the most tokens, then leave threads idle, so chunks of their queries join the batch.
    """

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        chunks = self._count_chunks(q)
        if chunks == 1:
            return super()._mix(q, k, v)
        q = q.unflatten(2, (chunks, -1)).transpose(1, 2).flatten(0, 1)
        k, v = (t.unsqueeze(1).expand(-1, chunks, -1, -1, -1).flatten(0, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        joined: Tensor = out.unflatten(0, (-1, chunks)).transpose(1, 2).flatten(2, 3)
        return joined

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    def _count_chunks(self, q: Tensor) -> int:
        """Number of chunks of the queries (batch, heads, length, head_dim) that uses all threads; 1 for none."""
        is_eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if not (self.fused_attn and q.device.type == "cpu" and torch.is_grad_enabled() and is_eager):
            return 1
        batch, heads, length, _ = q.shape
        chunks = -(-torch.get_num_threads() // (batch * heads))
        return 1 if length % chunks or length // chunks < MIN_CHUNK_QUERIES else chunks
