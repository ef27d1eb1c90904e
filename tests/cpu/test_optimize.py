"""Optimised networks against plain ones: steps, copies, weights, export, compilation."""

from __future__ import annotations

import pickle
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_transformers.architectures import MiTPair, create_network
from nnunet_transformers.architectures.layers import RelativePositionBias, WindowAttention
from nnunet_transformers.cpu import attention, depthwise, linear, optimize, plain_class, use_kernels
from nnunet_transformers.cpu.dispatch import may_choose_kernel
from tests.architectures.test_networks import (
    COMPILED,
    SMALLEST,
    forms,
    one_form,
    smallest_overrides,
    with_drop_path,
)

FUNCTIONS = (
    linear.LinearFunction,
    attention.WindowAttentionFunction,
    depthwise.DepthwiseConvolutionFunction,
)

FUNCTION_OF = {
    "CPUWindowAttention": "WindowAttentionFunction",
    **dict.fromkeys(("CPUConv2d", "CPUConv3d"), "DepthwiseConvolutionFunction"),
    **dict.fromkeys(("CPULinear", "CPUPatchTranspose2d", "CPUPatchTranspose3d"), "LinearFunction"),
    "CPUSpatialReductionAttention": "LinearFunction",
}


@pytest.fixture
def applied(monkeypatch):
    """Names of the kernels' autograd functions, in the order of their calls."""
    names: list[str] = []

    def count(function):
        original = function.apply
        monkeypatch.setattr(function, "apply", lambda *t: names.append(function.__name__) or original(*t))

    for function in FUNCTIONS:
        count(function)
    return names


@pytest.fixture
def product_in_float64(monkeypatch):
    """oneDNN's product, which has float32 only, is PyTorch's: what is around it is compared in float64."""
    monkeypatch.setattr(linear, "KERNEL", lambda x, weight, bias, *_: F.linear(x, weight, bias))
    monkeypatch.setattr(linear, "is_applicable", may_choose_kernel)


def kernels_of(network: nn.Module) -> set[str]:
    """Names of a network's layer classes with CPU kernels."""
    return {type(module).__name__ for module in network.modules() if type(module) is not plain_class(module)}


def build(name, patch_size, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    network = create_network(name, 1, 2, patch_size, deep_supervision=True, **overrides)
    # as if trained: bias tables, layer scales and the like start at zero or next to it
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.to(dtype)


def step(network, image):
    """Logits of a training step and the gradients of all parameters."""
    torch.manual_seed(1)
    outputs = network(image)
    loss = sum(output.square().mean() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, list(network.parameters()))]


# one of the thesis's "-A" variants, which merge in the plane; others of a class differ in width and depth alone
CLASSES = [*SMALLEST, "qt_unet_a_tiny"]


@pytest.mark.parametrize("name,patch_size", forms(CLASSES, patches=COMPILED))
@pytest.mark.usefixtures("product_in_float64")
def test_a_step_of_every_network_in_float64(name, patch_size, applied):
    plain = build(name, patch_size, torch.float64, **smallest_overrides(name, len(patch_size)))
    network, image = optimize(deepcopy(plain)), torch.randn(2, 1, *patch_size, dtype=torch.float64)
    expected = step(plain, image)
    assert not applied
    torch.testing.assert_close(step(network, image), expected, rtol=1e-7, atol=1e-9)
    assert set(applied) == {FUNCTION_OF[kernel] for kernel in kernels_of(network)}


@pytest.mark.parametrize("name,patch_size", one_form(SMALLEST))
def test_a_step_in_float32(name, patch_size, applied):
    exact = build(name, patch_size, torch.float64, **smallest_overrides(name, len(patch_size)))
    network = optimize(deepcopy(exact).float())
    plain = deepcopy(exact).float()
    image = torch.randn(2, 1, *patch_size)
    theirs, truth = step(plain, image), step(exact, image.double())
    assert not applied
    ours = step(network, image)
    uses_product = "LinearFunction" in {FUNCTION_OF[kernel] for kernel in kernels_of(network)}
    assert ("LinearFunction" in applied) == (uses_product and linear.KERNEL is not None)
    for one, other, exactly in zip(ours, theirs, truth, strict=True):
        # instance norm over few elements magnifies the rounding of float32, the plain network's as well
        error, usual = (torch.linalg.vector_norm(t.double() - exactly) for t in (one, other))
        assert error <= 10 * usual + 1e-5 * torch.linalg.vector_norm(exactly) + 1e-7


@pytest.mark.parametrize("name,patch_size", one_form(SMALLEST, patches=COMPILED))
class TestOptimised:
    def test_twice_is_once(self, name, patch_size):
        network = create_network(name, 1, 2, patch_size)
        keys, parameters = list(network.state_dict()), list(network.parameters())
        assert not kernels_of(network)
        assert optimize(network) is network
        classes = [type(module) for module in network.modules()]
        assert bool(kernels_of(network)) == (name != "resnet18_unet")  # whose layers are convolutions
        optimize(network)
        assert [type(module) for module in network.modules()] == classes
        assert list(network.state_dict()) == keys
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))

    def test_copies_keep_it(self, name, patch_size):
        network = optimize(build(name, patch_size, **smallest_overrides(name, len(patch_size)))).eval()
        image = torch.randn(1, 1, *patch_size)
        with torch.no_grad():
            expected = network(image)
            for twin in (pickle.loads(pickle.dumps(network)), deepcopy(network)):
                assert [type(m) for m in twin.modules()] == [type(m) for m in network.modules()]
                # layers of their own, not the first network's
                assert all(a is not b for a, b in zip(twin.modules(), network.modules(), strict=True))
                torch.testing.assert_close(twin(image), expected)

    def test_weights_go_both_ways(self, name, patch_size):
        # float64: instance norm over few elements magnifies the rounding of float32
        overrides = smallest_overrides(name, len(patch_size))
        network = optimize(build(name, patch_size, **overrides).double()).eval()
        plain = create_network(name, 1, 2, patch_size, **overrides).double().eval()
        plain.load_state_dict(network.state_dict(), strict=True)
        again = optimize(create_network(name, 1, 2, patch_size, **overrides).double()).eval()
        again.load_state_dict(plain.state_dict(), strict=True)
        image = torch.randn(1, 1, *patch_size, dtype=torch.float64)
        with torch.no_grad():
            expected = plain(image)
            torch.testing.assert_close(again(image), expected)
            torch.testing.assert_close(network(image)[0], expected)

    def test_without_numbers(self, name, patch_size, applied):
        """On another device and on fake tensors, as planners use networks."""
        overrides = smallest_overrides(name, len(patch_size))
        with torch.device("meta"):
            network = optimize(create_network(name, 1, 2, patch_size, **overrides))
            network(torch.empty(1, 1, *patch_size)).mean().backward()
        assert not applied
        with FakeTensorMode():
            network = optimize(create_network(name, 1, 2, patch_size, **overrides))
            network(torch.empty(1, 1, *patch_size)).mean().backward()
        # the only kernel that also saves memory
        assert set(applied) <= {"WindowAttentionFunction"}


@pytest.mark.parametrize("name,patch_size", one_form(SMALLEST, patches=COMPILED))
def test_exported_with_the_plain_operations(name, patch_size, applied):
    plain = create_network(name, 1, 2, patch_size, **smallest_overrides(name, len(patch_size))).eval()
    network, image = optimize(deepcopy(plain)), (torch.randn(1, 1, *patch_size),)
    operations = [
        [n.target for n in torch.export.export(net, image, strict=False).graph.nodes if n.op == "call_function"]
        for net in (plain, network)
    ]
    assert operations[0] == operations[1]
    assert not any("mkldnn" in str(operation) for operation in operations[1])
    assert not applied


@pytest.mark.usefixtures("product_in_float64")
@pytest.mark.parametrize("name", [name for name in SMALLEST if name != "resnet18_unet"])
def test_compiled_with_the_plain_operations(name, applied):
    patch_size = COMPILED["2d"]
    overrides = with_drop_path(name, 2)
    plain = build(name, patch_size, torch.float64, **overrides)
    network, image = optimize(deepcopy(plain)), torch.randn(1, 1, *patch_size, dtype=torch.float64)
    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch.compiler.reset()
    results = [step(torch.compile(net, backend=backend, fullgraph=True), image) for net in (plain, network)]
    torch.compiler.reset()
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)
    assert len(graphs) == 2
    assert graphs[0] == graphs[1]
    assert not applied


def test_other_layers_stay_as_they_are():
    class Own(nn.Linear):
        """A user's."""

    network = optimize(nn.Sequential(Own(2, 2), nn.Conv2d(2, 2, 3, groups=2), nn.LayerNorm(2), nn.GELU()))
    assert not kernels_of(network)
    assert kernels_of(optimize(nn.Linear(2, 2))) == {"CPULinear"}


def test_layers_are_found_by_their_plain_class():
    network = optimize(create_network("qt_unet_tiny", 1, 2, COMPILED["2d"]))
    attentions = [module for module in network.modules() if isinstance(module, WindowAttention)]
    assert attentions
    assert all(isinstance(module.bias, RelativePositionBias) for module in attentions)
    assert {plain_class(module) for module in attentions} == {WindowAttention}
    assert isinstance(network.get_submodule("decoder.expand"), nn.Linear)


def test_forms_of_a_pair_go_on_sharing_layers():
    pair = MiTPair((64, 64), (16, 64, 64))
    shared = {id(m) for m in pair.form_2d.modules()} & {id(m) for m in pair.form_3d.modules()}
    optimize(pair)
    assert shared == {id(m) for m in pair.form_2d.modules()} & {id(m) for m in pair.form_3d.modules()}
    assert "CPULinear" in kernels_of(pair)


def test_memory_is_kept_by_optimize_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("nnunet_transformers.cpu.kernels.keep_freed_memory", lambda: calls.append(1))
    use_kernels(nn.Linear(2, 2))
    assert not calls
    optimize(nn.Linear(2, 2))
    assert calls


def test_architectures_do_not_know_kernels():
    program = "import sys, nnunet_transformers.architectures; print('nnunet_transformers.cpu' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", program], text=True).strip() == "False"
