"""Attention in half precision against float64, where scores are large."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from nnunet_transformers.architectures.layers import (
    RelativePositionBias,
    SpatialReductionAttention,
    WindowAttention,
    WindowPartition,
)

DTYPES = [torch.float16, torch.bfloat16]


def windowed(fused, shifted=False):
    """Windowed attention and its bias."""
    partition = WindowPartition((6, 9), (3, 3), shifted)
    attention = WindowAttention(16, 2, partition, RelativePositionBias((3, 3), (3, 3), 2, init_std=1.0))
    attention.fused_attn = fused
    return attention._mix, attention.bias(partition.mask)


def to_all(fused):
    """Global attention and no bias."""
    attention = SpatialReductionAttention(16, 2, (6, 9), (1, 1))
    attention.fused_attn = fused
    return attention._mix, torch.zeros(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize(
    "build,shape",
    [(windowed, (2, 6, 2, 9, 8)), (partial(windowed, shifted=True), (2, 6, 2, 9, 8)), (to_all, (2, 2, 54, 8))],
    ids=["windows", "shifted-windows", "all"],
)
class TestLargeScores:
    def results(self, build, fused, numbers):
        """Output and gradients in half precision, and those of float64 from the same rounded numbers."""
        attend, bias = build(fused)

        def run(attend, numbers):
            q, k, v = (n.detach().requires_grad_() for n in numbers[:3])
            output = attend(q, k, v)
            return [output, *torch.autograd.grad(output, (q, k, v), numbers[3])]

        def plain(q, k, v):
            return (q @ k.mT * q.shape[-1] ** -0.5 + bias.double()).softmax(-1) @ v

        with torch.autocast("cpu", numbers[0].dtype):
            half = run(attend, numbers)
        assert all(r.dtype == n.dtype for r, n in zip(half, numbers, strict=True))
        return half, run(plain, [n.double() for n in numbers])

    def test_scores_of_a_thousand_that_differ_by_a_few(self, build, fused, dtype, shape):
        torch.manual_seed(0)
        q, k, v, grad = (torch.randn(shape) for _ in range(4))
        q[..., 0], k[..., 0] = q[..., 0] + 3000, 1
        results = self.results(build, fused, [n.to(dtype) for n in (q, k, v, grad)])
        for half, exact in zip(*results, strict=True):
            assert (half - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()

    def test_scores_beyond_float16(self, build, fused, dtype, shape):
        torch.manual_seed(0)
        numbers = [scale * torch.randn(shape).to(dtype) for scale in (1e3, 1e3, 1, 1)]
        (output, *gradients), (exact, *_) = self.results(build, fused, numbers)
        assert (output - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()
        assert all(g.isfinite().all() for g in gradients)
