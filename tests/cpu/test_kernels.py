"""The CPU kernels against PyTorch's own, in float64."""

import time
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_transformers.architectures.layers import (
    RelativePositionBias,
    SpatialReductionAttention,
    WindowAttention,
    WindowPartition,
    convolution,
    patch_transpose,
)
from nnunet_transformers.architectures.layers.channels_last import Conv2d
from nnunet_transformers.cpu import attention as cpu_attention
from nnunet_transformers.cpu import depthwise as cpu_depthwise
from nnunet_transformers.cpu import linear as cpu_linear
from nnunet_transformers.cpu import use_kernels
from nnunet_transformers.cpu.linear import CPULinear, linear

needs_kernel = pytest.mark.skipif(cpu_linear.KERNEL is None, reason="PyTorch or processor without the kernel")


def gradients(function, *inputs):
    """The output and its gradients with random weights, for inputs that require them."""
    output = function(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    return output, torch.autograd.grad((output * weights.to(output.dtype)).sum(), wanted)


def layer_gradients(layer, *inputs):
    """The output of a layer and its gradients by inputs and parameters."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    output, found = gradients(lambda *t: layer(*t[: len(inputs)]), *inputs, *layer.parameters())
    return [output, *found]


def count_calls(monkeypatch, function):
    """A list that grows with each application of an autograd function."""
    calls, original = [], function.apply
    monkeypatch.setattr(function, "apply", lambda *t: calls.append(1) or original(*t))
    return calls


@needs_kernel
@given(
    leading=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    in_features=st.sampled_from([1, 3, 16, 48, 160]),
    out_features=st.sampled_from([1, 2, 14, 48, 192]),
    has_bias=st.booleans(),
    is_transposed=st.booleans(),
    needs=st.tuples(st.booleans(), st.booleans()).filter(any),
)
@settings(max_examples=60, deadline=None)
def test_linear_equals_the_plain_one_in_float64(leading, in_features, out_features, has_bias, is_transposed, needs):
    torch.manual_seed(0)
    x = torch.randn(*leading[1:], in_features, leading[0]).movedim(-1, 0)
    x = x if is_transposed else x.contiguous()
    weight = torch.randn(out_features, in_features).requires_grad_(needs[1])
    bias = torch.randn(out_features).requires_grad_(needs[1]) if has_bias else None
    x.requires_grad_(needs[0])
    assert cpu_linear.is_applicable(x, weight)
    exact = [t if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in (x, weight, bias)]
    plain = gradients(F.linear, *exact)
    fast = gradients(linear, x, weight, bias)
    for ours, theirs in zip((fast[0], *fast[1]), (plain[0], *plain[1]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item()))


def test_a_linear_layer_without_the_kernel_is_pytorchs(monkeypatch):
    monkeypatch.setattr(cpu_linear, "KERNEL", None)
    layer, x = CPULinear(8, 4), torch.randn(3, 8)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@needs_kernel
def test_a_gradient_with_gaps_between_its_rows_takes_no_slow_path():
    """The gradient of a concatenation has such gaps: about as fast, or 500 times slower if the kernel gets it."""
    x, weight = torch.randn(8192, 48), torch.randn(144, 48, requires_grad=True)
    gradient = torch.randn(8192, 288)[:, :144]

    def seconds(gradient):
        output = linear(x, weight, None)
        weight.grad = None
        start = time.process_time()
        output.backward(gradient)
        return time.process_time() - start

    without_gaps = min(seconds(gradient.contiguous()) for _ in range(3))
    assert min(seconds(gradient) for _ in range(3)) < 20 * without_gaps
    torch.testing.assert_close(weight.grad, gradient.T @ x, rtol=1e-3, atol=1e-3)


@needs_kernel
def test_no_kernel_is_chosen_where_another_decides():
    x, weight = torch.randn(2, 4), torch.randn(3, 4)
    assert cpu_linear.is_applicable(x, weight)
    assert not cpu_linear.is_applicable(x.double(), weight.double())
    assert not cpu_linear.is_applicable(x, weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not cpu_linear.is_applicable(x, weight)
        assert CPULinear(4, 3)(x).dtype == torch.bfloat16
    with FakeTensorMode():
        assert not cpu_linear.is_applicable(torch.empty(2, 4), torch.empty(3, 4))


@pytest.mark.parametrize("layer", [torch.nn.Linear(4, 3), convolution(4, 4, (3, 5), groups=4)], ids=["linear", "conv"])
def test_an_input_without_elements(layer):
    """As of a network that classifies the boxes that it has found."""
    fast, x = use_kernels(deepcopy(layer)), torch.randn(0, 9, 9, 4)
    for ours, theirs in zip(layer_gradients(fast, x), layer_gradients(layer, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_kernel
def test_products_of_the_kernel_are_counted():
    layer, x = CPULinear(48, 192), torch.randn(10, 48)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 10 * 48 * 192  # forward and the weight's gradient


@given(
    kernel_size=st.sampled_from([(3, 3), (7, 7), (1, 5), (3, 3, 3), (1, 3, 3)]),
    batch=st.integers(1, 3),
    channels=st.integers(2, 5),
    edge=st.integers(1, 9),
    has_bias=st.booleans(),
    needs_input=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_depthwise_convolution_equals_the_plain_one_in_float64(
    kernel_size, batch, channels, edge, has_bias, needs_input
):
    torch.manual_seed(0)
    x = torch.randn(batch, edge, *(edge + 1,) * (len(kernel_size) - 1), channels).double().movedim(-1, 1)
    x.requires_grad_(needs_input)
    weight = torch.randn(channels, 1, *kernel_size).double().requires_grad_()
    bias = torch.randn(channels).double().requires_grad_() if has_bias else None
    padding = tuple(k // 2 for k in kernel_size)
    plain_convolution = {2: F.conv2d, 3: F.conv3d}[len(kernel_size)]
    plain = gradients(lambda *t: plain_convolution(*t, padding=padding, groups=channels), x, weight, bias)
    fast = gradients(lambda *t: cpu_depthwise.DepthwiseConvolutionFunction.apply(*t, padding), x, weight, bias)
    for ours, theirs in zip((fast[0], *fast[1]), (plain[0], *plain[1]), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("arguments", [{"groups": 4}, {"groups": 4, "stride": 2}, {"groups": 2}, {}], ids=str)
def test_only_depthwise_convolutions_of_stride_1_take_the_fast_backward_pass(arguments, monkeypatch):
    layer = use_kernels(convolution(4, 4, (3, 3), **arguments).double())
    assert (type(layer) is Conv2d) == (arguments != {"groups": 4})
    x = torch.randn(2, 6, 6, 4, dtype=torch.float64, requires_grad=True)
    calls = count_calls(monkeypatch, cpu_depthwise.DepthwiseConvolutionFunction)
    output = layer(x)
    assert bool(calls) == (arguments == {"groups": 4})
    plain = F.conv2d(x.movedim(-1, 1), layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
    torch.testing.assert_close(output.movedim(-1, 1), plain)
    with torch.no_grad():
        layer(x)
    assert len(calls) == int(arguments == {"groups": 4})


@pytest.mark.parametrize(
    "changes",
    [
        {"dilation": 2},
        {"padding": 0},
        {"padding_mode": "circular"},
        {"out_channels": 8},
        {"kernel_size": 4},
    ],
    ids=str,
)
def test_other_depthwise_convolutions_stay_as_they_are(changes):
    settings_of_layer = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 4}
    assert type(use_kernels(Conv2d(**{**settings_of_layer, **changes}))) is Conv2d


@needs_kernel
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("grid, stride", [((3, 4), (2, 2)), ((2, 3, 4), (1, 2, 4))], ids=str)
def test_patch_transpose_equals_the_plain_one(grid, stride, channels_last, monkeypatch):
    plain = patch_transpose(5, 3, stride, channels_last)
    fast = use_kernels(deepcopy(plain))
    x = torch.randn(2, *grid, 5) if channels_last else torch.randn(2, 5, *grid)
    calls = count_calls(monkeypatch, cpu_linear.LinearFunction)
    torch.testing.assert_close(layer_gradients(fast, x), layer_gradients(plain.double(), x.double()), check_dtype=False)
    assert len(calls) == 1


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("grid", [(6, 9), (5, 4, 7)], ids=["2d", "3d"])
@pytest.mark.parametrize("chunk_elements", [cpu_attention.CHUNK_ELEMENTS, 1], ids=["chunk", "chunks"])
def test_window_attention_equals_the_plain_one(
    grid, shifted, mask_padding, cross_attention, chunk_elements, monkeypatch
):
    partition = WindowPartition(grid, (3,) * len(grid), shifted, mask_padding)
    bias = RelativePositionBias((3,) * len(grid), partition.window_size, 2, init_std=1.0)
    plain = WindowAttention(8, 2, partition, bias, cross_attention).double()
    fast = use_kernels(deepcopy(plain))
    inputs = [torch.randn(2, torch.Size(grid).numel(), 8, dtype=torch.float64) for _ in range(1 + cross_attention)]
    monkeypatch.setattr(cpu_attention, "CHUNK_ELEMENTS", chunk_elements)
    calls = count_calls(monkeypatch, cpu_attention.WindowAttentionFunction)
    torch.testing.assert_close(layer_gradients(fast, *inputs), layer_gradients(plain, *inputs), rtol=1e-8, atol=1e-10)
    assert len(calls) == 1
    with torch.no_grad():
        torch.testing.assert_close(fast(*inputs), plain(*inputs))
    assert len(calls) == 1  # without a gradient PyTorch's kernel serves


@pytest.mark.parametrize("threads,chunks", [(1, 1), (8, 2), (20, 1)])
def test_spatial_reduction_attention_equals_the_plain_one(threads, chunks, monkeypatch):
    """Chunks of queries join the batch where heads are fewer than threads and the chunks large and even."""
    plain = SpatialReductionAttention(6, 2, (64, 40), (16, 10)).double()
    fast = use_kernels(deepcopy(plain))
    tokens = torch.randn(2, 64 * 40, 6, dtype=torch.float64)
    plain.fused_attn = False
    expected = layer_gradients(plain, tokens)
    batches = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, *rest, **options: batches.append(len(q)) or original(q, *rest, **options),
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.testing.assert_close(layer_gradients(fast, tokens), expected)
    assert batches == [2 * chunks]
