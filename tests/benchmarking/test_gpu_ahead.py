"""Kernels compiled for a GPU that is not there."""

from __future__ import annotations

import pytest
import torch
from torch.fx import CodeGen
from torch.fx.experimental.proxy_tensor import make_fx

from tests.fake_cuda import fake_cuda, requires_cuda_build

pytestmark = requires_cuda_build


def test_a_kernel_for_each_architecture():
    pytest.importorskip("triton")
    from benchmarks.gpu import ahead

    with fake_cuda():
        inputs = [torch.randn(64, 512, device="cuda")]
        graph = make_fx(lambda x: ((x - x.mean(1, keepdim=True)).exp(),), _allow_non_fake_inputs=True)(*inputs)
    graph.graph.set_codegen(CodeGen())
    for capability in ahead.ARCHITECTURES:
        with ahead.pretended_device(capability):
            kernels = ahead.written_kernels(graph, inputs)
            assert len(kernels) == 1  # the mean and what follows it are fused
            (used,) = [ahead.compiled_kernel(name, source) for name, source in kernels.items()]
        # a thread has registers, and what its rows' sums need of shared memory is less than a block has
        assert all(u.registers > 0 and u.local == 0 and 0 <= u.shared < 49_152 for u in used)
    assert not torch.cuda.is_available()
