"""Memory of a training step, or of a pass of inference, measured by running the network on tensors without data.

The network runs forward and backward on tensors that have shapes, types and lifetimes but no data. All live storages
are counted, so the peak includes activations kept for backward, gradients and temporaries. This works for any network,
without a formula to maintain. nnU-Net trains in mixed precision on CUDA; autocast does not act on such tensors, so
``_MixedPrecision`` applies its rules on the meta device. A training on CPU is traced on fake CPU tensors, as its
kernels ask for the device; that takes three to five times as long.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .._meta import without_data
from ..architectures.layers.relative_position_bias import RelativePositionBias
from ..cpu import use_kernels
from .output_shapes import OutputShapes

# CUDA context, cuDNN and cuBLAS workspaces, as measured with CUDA 13 on an H100 (benchmarks/gpu)
CUDA_OVERHEAD = 0.85e9
# besides the parameter itself: gradient and the optimiser's two moments, float32
BYTES_PER_PARAMETER = 12


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations create, and their peak."""

    _run = OutputShapes()

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _FusedAttention(torch.autograd.Function):
    """Memory of a fused attention kernel: no scores, but the full gradient of a bias."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, _, _ = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        if bias is None or not bias.is_floating_point():
            return (*grads, None)
        return (*grads, bias.new_empty(q.shape[0], *bias.shape[1:]).sum_to_size(bias.shape))


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Any:
    """Stands in for ``scaled_dot_product_attention``, which on the meta device keeps the scores."""
    return _FusedAttention.apply(query, key, value, attn_mask)


class _MixedPrecision(TorchFunctionMode):
    """The rules of CUDA autocast in float16, and fused attention."""

    half: tuple[Any, ...] = (F.linear, F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d)
    half += (torch.matmul, Tensor.matmul)
    half += (Tensor.__matmul__, torch.einsum, F.scaled_dot_product_attention)
    # not group_norm: ConvNormAct uses it as instance norm on CPU, which autocast leaves in half precision
    single = (F.layer_norm, F.softmax, F.log_softmax, Tensor.softmax, torch.softmax, F.cross_entropy, F.interpolate)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.half or func in self.single:
            dtype = torch.float16 if func in self.half else torch.float32
            args, kwargs = tree_map(partial(_cast, dtype=dtype), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _cast(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _segmentation_loss(logits: Tensor) -> Tensor:
    """A simplified Dice and cross-entropy loss that, as nnU-Net's, keeps a few tensors of the logits' size."""
    target = logits.new_zeros((logits.shape[0], *logits.shape[2:]), dtype=torch.long)
    probabilities = logits.float().softmax(1)
    one_hot = torch.zeros_like(probabilities, dtype=torch.bool)
    return F.cross_entropy(logits.float(), target) - (probabilities * one_hot).sum()


def _region_loss(logits: Tensor) -> Tensor:
    """The same for regions: each is a binary segmentation of its own, with a channel in the target."""
    target = torch.zeros_like(logits, dtype=torch.bool)
    probabilities = logits.float().sigmoid()
    return F.binary_cross_entropy_with_logits(logits.float(), target.float()) - (probabilities * target).sum()


def batch_bytes(input_channels: int, patch_size: Sequence[int], batch_size: int, regions: int = 0) -> int:
    """Compute the memory of a batch of nnU-Net's.

    Images are float32. Labels are int16 at every scale of deep supervision, all of which have less than twice the
    voxels of the first; regions are a byte each.

    Args:
        input_channels, patch_size, batch_size: as ``training_peak_bytes``.
        regions: number of regions, 0 for labels.
    """
    of_targets = 2 * regions if regions else 4
    return batch_size * prod(patch_size) * (4 * input_channels + of_targets)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def training_peak_bytes(
    build_network: Callable[[], nn.Module],
    input_channels: int,
    patch_size: Sequence[int],
    batch_size: int,
    mixed_precision: bool = True,
    has_regions: bool = False,
) -> tuple[int, int]:
    """Compute the memory of a training step: forward, loss and backward.

    Args:
        build_network: builds the network; called for tensors without data.
        input_channels: image channels.
        patch_size: voxels per axis.
        batch_size: samples per step.
        mixed_precision: nnU-Net's training on CUDA; False for its training on CPU, float32 with CPU kernels.
        has_regions: whether the classes are regions, which have another loss.

    Returns:
        static bytes (network, gradients, optimiser, and CUDA's own under mixed precision) and the peak bytes of
        everything else.
    """
    with torch.device("meta") if mixed_precision else FakeTensorMode(allow_non_fake_inputs=True):
        with without_data() if mixed_precision else nullcontext(), _LiveBytes() as built:
            network = build_network().train()
        if not mixed_precision:
            use_kernels(network)
        for parameter in network.parameters():
            # BYTES_PER_PARAMETER counts gradients, so each is dropped once it is accumulated
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        image = torch.empty(batch_size, input_channels, *patch_size)
        with _LiveBytes() as memory, _MixedPrecision() if mixed_precision else nullcontext():
            outputs = network(image)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            loss_of = _region_loss if has_regions else _segmentation_loss
            loss = sum((loss_of(output) for output in outputs), start=image.new_zeros(()))
            del outputs
            # from a gradient edge: a tensor's backward would disable _MixedPrecision for the operations that activation
            # checkpointing recomputes
            torch.autograd.backward([get_gradient_edge(loss)], [torch.ones_like(loss)])
        parameters = sum(p.numel() for p in network.parameters())
    static = built.live + BYTES_PER_PARAMETER * parameters + (int(CUDA_OVERHEAD) if mixed_precision else 0)
    return static, memory.peak + image.numel() * 4


def training_step_bytes(
    build_network: Callable[[], nn.Module],
    input_channels: int,
    patch_size: Sequence[int],
    mixed_precision: bool = True,
) -> tuple[int, int]:
    """Fit the memory of a training step as a line over the batch size, through batches of one and two.

    Args:
        build_network, input_channels, patch_size, mixed_precision: as ``training_peak_bytes``.

    Returns:
        bytes independent of the batch size, and bytes per sample.
    """
    static, one = training_peak_bytes(build_network, input_channels, patch_size, 1, mixed_precision)
    _, two = training_peak_bytes(build_network, input_channels, patch_size, 2, mixed_precision)
    return static + 2 * one - two, two - one


def keep_tables(network: nn.Module) -> nn.Module:
    """Let a network keep under no_grad what its modules keep in a prediction."""
    for module in network.modules():
        if isinstance(module, RelativePositionBias):
            module.keeps_without_grad = True
    return network


def pass_peak_bytes(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Compute the memory of a forward pass on CPU without gradients: input, activations, and tables that modules keep.

    Args:
        network: any; it is not changed.
        input_shape: (batch, channels, *patch_size).
    """
    # what modules keep from a pass stays in a copy, which has the network's own tensors
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = keep_tables(deepcopy(network, shared).eval())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _LiveBytes() as memory:
        copied(torch.empty(*input_shape))
    return int(memory.peak)
