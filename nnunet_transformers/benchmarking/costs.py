"""Lower bounds on the cost of an operation: multiply-adds, and bytes read and written.

Only matrix products, convolutions and attention count. All other operations (norms, activations, additions, copies)
can be fused into the one before or after, so they add nothing to a floor; views cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

aten = torch.ops.aten
_BATCHED_PRODUCTS = (aten.bmm, aten.baddbmm)
# fused attention on CPU takes the formula of CUDA, as some versions of PyTorch have none for it
_SAME_FORMULA = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of an operation, and the bytes that it must move."""

    multiply_adds: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)


def operation_cost(
    operation: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> Cost:
    """Count the cost of a call that a ``TorchDispatchMode`` intercepts.

    Multiply-adds are PyTorch's count (``torch.utils.flop_counter``): a convolution by its definition, without the
    savings of Winograd's algorithm, and a fused attention's backward pass with recomputed scores. Bytes are those of
    operands and results, each once, without those that a fused kernel need not move: the scores of attention (the
    largest of the three tensors in a batched matrix product) and its bias or mask, which expands a small table.

    Args:
        operation: operator, such as ``torch.ops.aten.mm.default``.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        result: result of the call.

    Returns:
        the cost; zero for operations that do not count.
    """
    packet = operation._overloadpacket
    formula: Callable[..., int] | None
    if packet is aten.convolution_backward:
        formula = _convolution_backward
    else:
        formula = flop_registry.get(packet) or flop_registry.get(_SAME_FORMULA.get(packet))
    if formula is None:
        return Cost()
    # a formula counts a multiplication and an addition as two
    multiply_adds = formula(*args, **kwargs, out_val=result) // 2
    names = [argument.name for argument in operation._schema.arguments]
    tensors = {name: value for name, value in zip(names, args, strict=False) if isinstance(value, Tensor)}
    if "query" in tensors:
        q, k, v = (_bytes(tensors[name]) for name in ("query", "key", "value"))
        # forward: q, k, v and the output; backward: these, the output's gradient and three gradients
        return Cost(multiply_adds, 4 * q + 2 * k + 2 * v if "grad_out" in names[0] else 2 * q + k + v)
    if packet in _BATCHED_PRODUCTS:
        matrices = sorted(_bytes(t) for t in (*args[-2:], result))
        return Cost(multiply_adds, sum(matrices[:-1]))
    results = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    return Cost(multiply_adds, sum(map(_bytes, (*tensors.values(), *results))))


class CostCounter(TorchDispatchMode):
    """Context that sums the cost of all operations in ``cost``."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = Cost()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.cost += operation_cost(func, args, kwargs or {}, result)
        return result


def _convolution_backward(grad_out: Tensor, image: Tensor, weight: Tensor, *args: Any, out_val: Any) -> int:
    """Count the forward pass's FLOPs once per gradient (image, weight); PyTorch's formula ignores groups."""
    transposed, needed = args[4], args[-1]
    image_shape, weight_shape, out_shape = (list(tensor.shape) for tensor in (image, weight, grad_out))
    return sum(needed[:2]) * conv_flop_count(image_shape, weight_shape, out_shape, transposed)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct elements; axes that are expanded (stride 0) count once."""
    return tensor.element_size() * prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
