"""A CUDA device without one: fake tensors, PyTorch's own autocast, and a backward pass without its engine.

A fake tensor has shape, type and device but no data, so an operation on tensors of two devices raises, and so does
whatever reads a value on the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
requires_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is built without CUDA")


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """New tensors are fake; those of ``torch.device("cuda")`` count as ones of a GPU, for autocast as well."""
    with ExitStack() as stack:
        # autocast and the scaler would switch themselves off
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.amp.grad_scaler.amp_definitely_not_available", lambda: False, create=True))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda *_: True))
        stack.enter_context(patch.object(torch.amp.GradScaler, "_maybe_opt_step", _step_without_asking))
        stack.enter_context(patch.object(Tensor, "backward", lambda tensor, *_, **__: backward(tensor)))
        yield stack.enter_context(FakeTensorMode())


Moved = TypeVar("Moved")


def to_cuda(moved: Moved, mode: FakeTensorMode) -> Moved:
    """Move real tensors in any structure to the GPU, or what a module's ``to`` moves."""
    moves = cache(lambda tensor: tensor.detach().to(CUDA))
    as_parameter = cache(lambda tensor: nn.Parameter(moves(tensor), tensor.requires_grad))
    mode.allow_non_fake_inputs = True
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
        mode.allow_non_fake_inputs = False


def _step_without_asking(self: Any, optimizer: torch.optim.Optimizer, state: Any, *args: Any, **kwargs: Any) -> Any:
    """The scaler's own reads on the host whether a gradient is infinite."""
    return optimizer.step(*args, **kwargs)


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """Call all nodes of a loss's graph in an order that respects their edges; the engine needs a device's queue.

    As the engine does, gradients get the type and shape of what they belong to.
    """
    assert loss.grad_fn is not None
    waits = Counter[Node]()
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    gradients: dict[Node, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        results: Any = ()
        if given:
            metadata = node._input_metadata
            arguments = [given.get(n) for n in range(len(metadata))]
            call = node.apply if hasattr(node, "apply") else node
            results = call(*arguments)
            results = results if isinstance(results, tuple) else (results,)
        for n, (following, position) in enumerate(node.next_functions):
            if following is None:
                continue
            result = results[n] if n < len(results) else None
            if result is not None:
                _accumulate(gradients.setdefault(following, {}), position, result, following)
            waits[following] -= 1
            if not waits[following]:
                ready.append(following)


def _accumulate(slots: dict[int, Tensor], position: int, gradient: Tensor, node: Node) -> None:
    expected = node._input_metadata[position]
    if gradient.device != expected.device:
        raise RuntimeError(f"{node.name()}: a gradient of {gradient.device} for a tensor of {expected.device}")
    if tuple(gradient.shape) != tuple(expected.shape):
        gradient = gradient.sum_to_size(expected.shape)
    gradient = gradient.to(expected.dtype)
    slots[position] = slots[position] + gradient if position in slots else gradient
