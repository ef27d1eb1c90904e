"""A CUDA device without one: fake tensors, PyTorch's own autocast, and a backward pass without its engine.

A fake tensor has shape, type and device but no data, so an operation on tensors of two devices raises. Where the host
would wait for the device, or sends it data, the place is recorded.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
PACKAGES = ("nnunet_transformers", "nnunetv2", "lightly", "timm")
requires_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is built without CUDA")
Moved = TypeVar("Moved")
aten = torch.ops.aten


class FakeCUDA(TorchDispatchMode):
    """The device.

    Attributes:
        waits: "file function" of each place where the host reads from the device or copies from or to it.
    """

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.fakes, self.waits = fakes, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_device = first is not None and first.device == CUDA
        if first is not None and func is aten._local_scalar_dense.default:
            if on_device:
                self._note()
            # a number of words, or a label, or whether something is wrong
            return {torch.int64: 1, torch.bool: False}.get(first.dtype, 1.0)
        if on_device and func is aten.nonzero.default:
            self._note()
            # a quarter of the elements, as many in each row
            count = len(first) * max(1, prod(first.shape[1:]) // 4)
            return first.new_empty(count, first.dim(), dtype=torch.long)
        result = func(*args, **(kwargs or {}))
        if func in (aten._to_copy.default, aten.copy_.default):
            ends = {t.device.type for t in (first, result, *args[1:2]) if isinstance(t, Tensor)}
            if len(ends) > 1:
                self._note()
        return result

    def _note(self) -> None:
        named = [f for f in traceback.extract_stack() if not f.name.startswith("<")]  # no comprehension
        frames = [f for f in named if any(f"/{name}/" in f.filename for name in PACKAGES)]
        self.waits.append(f"{Path(frames[-1].filename).name} {frames[-1].name}" if frames else "the test")

    def move(self, moved: Moved) -> Moved:
        """Move real tensors in any structure to the device, or what a module's ``to`` moves."""
        moves = cache(lambda tensor: tensor.detach().to(CUDA))
        as_parameter = cache(lambda tensor: nn.Parameter(moves(tensor), tensor.requires_grad))
        self.fakes.allow_non_fake_inputs = True
        try:
            if not isinstance(moved, nn.Module):
                return tree_map(lambda value: moves(value) if isinstance(value, Tensor) else value, moved)
            for module in moved.modules():
                # the data of a real tensor cannot become fake, so parameters are new ones
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else moves(buffer)
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        module._parameters[name] = as_parameter(parameter)
                if type(module)._apply is not nn.Module._apply and not [*module.parameters()]:
                    module._apply(moves)
            return moved
        finally:
            self.fakes.allow_non_fake_inputs = False
            self.waits.clear()


@contextmanager
def fake_cuda() -> Iterator[FakeCUDA]:
    """New tensors are fake; those of ``torch.device("cuda")`` count as ones of a GPU, for autocast as well."""
    with ExitStack() as stack:
        # asked at every operation, which without a driver takes most of the time
        stack.enter_context(patch("torch.cuda.is_available", lambda: False))
        # autocast and the scaler would switch themselves off
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(patch.object(Tensor, "backward", lambda tensor, *_, **__: backward(tensor)))
        device = stack.enter_context(FakeCUDA(stack.enter_context(FakeTensorMode())))
        stack.enter_context(patch.object(nn.Module, "to", lambda module, *_, **__: device.move(module)))
        yield device


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Call all nodes of a loss's graph in an order that respects their edges; the engine needs a device's queue.

    As the engine does, gradients get the type and shape of what they belong to.

    Raises:
        RuntimeError: if a gradient is on another device than what it belongs to.
    """
    root: Any = loss.grad_fn
    waits = Counter[Node]()
    stack, seen = [root], {root}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients: dict[Node, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    ready = [root]
    while ready:
        node = ready.pop()
        given, results = gradients.pop(node, {}), ()
        if given:
            # an autograd.Function's node has its backward pass as ``apply``
            results = getattr(node, "apply", node)(*(given.get(n) for n in range(len(node._input_metadata))))
            results = results if isinstance(results, tuple) else (results,)
        for n, (following, position) in enumerate(node.next_functions):
            if following is None:
                continue
            if n < len(results) and results[n] is not None:
                _accumulate(gradients.setdefault(following, {}), position, results[n], following)
            waits[following] -= 1
            if not waits[following]:
                ready.append(following)


def _accumulate(slots: dict[int, Tensor], position: int, gradient: Tensor, node: Any) -> None:
    expected = node._input_metadata[position]
    if gradient.device != expected.device:
        raise RuntimeError(f"{node.name()}: a gradient of {gradient.device} for a tensor of {expected.device}")
    if tuple(gradient.shape) != tuple(expected.shape):
        gradient = gradient.sum_to_size(expected.shape)
    gradient = gradient.to(expected.dtype)
    slots[position] = slots[position] + gradient if position in slots else gradient
