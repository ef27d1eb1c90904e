"""Which kernel ``scaled_dot_product_attention`` takes for a network's calls, by PyTorch's own selection."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nnunet_transformers.benchmarking.machine import mark, seconds_between
from nnunet_transformers.benchmarking.measure import PRECISIONS

from .rows import Row, build
from .training import release

CHECKS: dict[str, Callable[..., bool]] = {
    "flash": cuda.can_use_flash_attention,
    "efficient": cuda.can_use_efficient_attention,
    "cudnn": getattr(cuda, "can_use_cudnn_attention", lambda *_: False),
}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# runs of which the median is taken
RUNS = 5


@dataclass(frozen=True)
class Layout:
    """Shape and strides of an operand; whether it has a gradient."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    gradient: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.requires_grad)

    def random(self, dtype: torch.dtype, device: str) -> Tensor:
        """Draw such an operand."""
        elements = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        storage = torch.randn(elements, dtype=dtype, device=device)
        return storage.as_strided(self.shape, self.strides).requires_grad_(self.gradient)


@dataclass(frozen=True)
class Call:
    """A call: its operands, the bias None without one, and the factor of the scores."""

    query: Layout
    key: Layout
    value: Layout
    bias: Layout | None
    scale: float | None

    def operands(self, dtype: torch.dtype, device: str) -> list[Tensor | None]:
        """Draw query, key, value and bias."""
        layouts = (self.query, self.key, self.value, self.bias)
        return [None if layout is None else layout.random(dtype, device) for layout in layouts]


class Calls(TorchFunctionMode):
    """Context that collects the calls of ``scaled_dot_product_attention``, with how many there are of each."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: dict[Call, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            bias = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            query, key, value = map(Layout.of, args[:3])
            call = Call(query, key, value, None if bias is None else Layout.of(bias), kwargs.get("scale"))
            self.counted[call] = self.counted.get(call, 0) + 1
        return func(*args, **kwargs)


@contextmanager
def standard_error() -> Iterator[list[str]]:
    """Collect what C++ writes to standard error, where PyTorch states why it refuses a kernel."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().splitlines()


def kernels(row: Row) -> dict[str, Any]:
    """List the distinct attention calls of a forward pass in training, with the kernel that each takes."""
    calls, dtype, patch_size = calls_of(row)
    return {"patch_size": patch_size, "calls": [_describe(call, count, dtype, row) for call, count in calls.items()]}


def calls_of(row: Row) -> tuple[dict[Call, int], torch.dtype, tuple[int, ...]]:
    """The distinct attention calls of a forward pass in training with their numbers, their type, and the patch."""
    release(torch.device(row.device))
    network, patch_size = build(row)
    image = torch.randn(row.batch_size, 1, *patch_size, device=row.device)
    dtype = PRECISIONS[row.precision] or torch.float32
    enabled = dtype is not torch.float32
    with torch.autocast(row.device, dtype=dtype, enabled=enabled), Calls() as calls:
        network.train()(image)
    return calls.counted, dtype, patch_size


def _describe(call: Call, count: int, dtype: torch.dtype, row: Row) -> dict[str, Any]:
    query, key, value, bias = call.operands(dtype, row.device)
    assert query is not None and key is not None and value is not None
    described: dict[str, Any] = {
        "count": count,
        "query": call.query.shape,
        "key": call.key.shape,
        "strides": call.query.strides,
        "bias": None if call.bias is None else call.bias.shape,
        "bias_strides": None if call.bias is None else call.bias.strides,
    }
    chosen = torch._fused_sdp_choice(query, key, value, attn_mask=bias, dropout_p=0.0, is_causal=False)
    described["chosen"] = next((name for name, b in BACKENDS.items() if int(b.value) == int(chosen)), str(chosen))
    parameters = cuda.SDPAParams(query, key, value, bias, 0.0, False, False)
    described["refused"] = {}
    usable = ["math"]
    for name, check in CHECKS.items():
        with standard_error() as lines:
            try:
                works = check(parameters, True)
            except RuntimeError as error:
                works, lines = False, str(error).splitlines()
        if works:
            usable.append(name)
        else:
            reasons = [line.partition("Warning: ")[2] or line for line in lines]
            described["refused"][name] = reasons[0].split(" (function")[0] if reasons else "unstated"
    described["milliseconds"] = {}
    for name in usable:
        try:
            described["milliseconds"][name] = _time(BACKENDS[name], (query, key, value, bias), call.scale, row)
        except RuntimeError as error:  # torch.OutOfMemoryError as well
            described["refused"][name] = str(error).splitlines()[0]
    return described


def _time(
    backend: SDPBackend, operands: tuple[Tensor, Tensor, Tensor, Tensor | None], scale: float | None, row: Row
) -> float:
    """Median milliseconds of forward and backward with one kernel."""
    query, key, value, bias = operands
    inputs = [t for t in operands if t is not None and t.requires_grad]
    device, times = torch.device(row.device), []
    with sdpa_kernel(backend):
        for _ in range(2 if row.tiny else RUNS):
            start = mark(device)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
            torch.autograd.grad(out, inputs, out)
            times.append(seconds_between(start, mark(device)))
    return 1e3 * median(times[1:])
