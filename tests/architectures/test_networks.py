"""Tests of every registered network; registration is enough to include a new one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_transformers import testing
from nnunet_transformers._meta import without_data
from nnunet_transformers.architectures import _registry, create_network, get_network, list_networks
from nnunet_transformers.architectures._network import no_weight_decay
from nnunet_transformers.architectures.mit import MiTTrunk
from nnunet_transformers.testing import NETWORK_CHECKS
from nnunet_transformers.testing.network import check_activation_checkpointing, check_autocast, shallow

# some need a library that may be missing
INSTALLED = [name for name in list_networks() if not get_network(name).missing_extra]
PATCHES = {f"{ndim}d": patch_size for ndim, patch_size in testing.PATCHES.items()}


def smallest_of_each_class():
    """The smallest network of each class, except the thesis's "-A" variants: the others differ in sizes alone."""

    def size(name):
        with without_data():
            network = create_network(name, 1, 2, PATCHES[f"{max(get_network(name).dimensions)}d"])
        return "_a_" in name, sum(p.numel() for p in network.parameters())

    classes = {}
    for name in INSTALLED:
        classes.setdefault(get_network(name).network_class, []).append(name)
    return [min(names, key=size) for names in classes.values()]


def forms(names, *dimensions, patches=PATCHES):
    """Parameters (name, patch_size) of all forms of networks, or of those with the given numbers of axes."""
    return [
        pytest.param(name, patches[f"{n}d"], id=f"{name}-{n}d")
        for name in names
        for n in get_network(name).dimensions
        if n in (dimensions or (2, 3))
    ]


def check_name(check):
    return check.__name__.removeprefix("check_")


# networks to compare with, mostly of libraries, and arguments that make them small: they have the tests of the contract
# and of their family's training, and their own; what all networks share is tested with the others
COMPARED = {
    "mednext": {"width": 8, "depths": (2, 1, 1, 1, 1)},
    "primus": {"embed_dim": 24, "num_heads": 2, "depth": 2, "widths": (8, 8, 8, 8)},
    "swin_unetr": {"embed_dim": 12},
    "unetr": {"embed_dim": 24, "num_heads": 2, "decoder_dim": 4},
}


def is_compared(name):
    """Whether a network is one to compare with."""
    return name.startswith(tuple(COMPARED))


def is_ours(name):
    """Whether a network is of this package, rather than of one that is installed beside it."""
    return get_network(name).network_class.__module__.partition(".")[0] == "nnunet_transformers"


def reduced(name):
    """Arguments that make a network to compare with small."""
    return next((arguments for start, arguments in COMPARED.items() if name.startswith(start)), {})


def small_patches(name):
    """Patches for the network of ``reduced``, with an odd number of tokens on an axis where they are not all odd."""
    return {"2d": (32, 64), "3d": (32, 64, 32)} if name.startswith("swin") else {"2d": (32, 48), "3d": (16, 48, 32)}


EACH_CLASS = smallest_of_each_class()
SMALLEST = [name for name in EACH_CLASS if not is_compared(name)]
IN_3D = [name for name in SMALLEST if name in list_networks(3)]
CHECKPOINTED = [name for name in SMALLEST if "activation_checkpointing" in get_network(name).override_names]
COMPILED = {"2d": (64, 32), "3d": (32, 32, 64)}


@cache
def smallest_overrides(name, ndim):
    """``shallow``, and the fewest stages with outputs for deep supervision: tracing takes a time for each layer."""
    overrides, own = shallow(name, ndim), get_network(name).all_arguments(ndim)
    for stages in range(2, own.get("num_stages", 0)):
        fewer = {**overrides, "num_stages": stages}
        if own.get("depths", ()) is None:  # which is one number for each stage
            fewer["depths"] = overrides["depths"][:stages]
        with without_data():
            network = create_network(name, 1, 2, COMPILED[f"{ndim}d"], deep_supervision=True, **fewer)
        if len(network.strides) > 2:
            return fewer
    return overrides


@pytest.mark.parametrize("name,patch_size", forms([name for name in INSTALLED if not is_compared(name)]))
def test_every_network_runs(name, patch_size):
    """With values for the smallest of each class; the others differ in sizes, which show without them."""
    with without_data() if name not in SMALLEST else nullcontext(), torch.no_grad():
        network, image = create_network(name, 5, 2, patch_size).eval(), torch.zeros(1, 5, *patch_size)
        assert network(image).shape == (1, 2, *patch_size)


def one_form(names, patches=PATCHES):
    """One form of each network, for what 2D and 3D share: 3D of two, and 2D of the others, which is quicker."""
    in_3d = ("qt_unet_tiny", "mit_7")
    return [
        forms([name], 3 if name in in_3d else min(get_network(name).dimensions), patches=patches)[0] for name in names
    ]


# of blocks, which are the same in 2D and 3D
SLOW_CHECKS = (check_autocast, check_activation_checkpointing)

COMPARED_FORMS = [
    form for name in EACH_CLASS if is_compared(name) for form in forms([name], patches=small_patches(name))
]


@pytest.fixture
def registered_small(monkeypatch, name):
    """Networks to compare with are registered in small, so that what holds for any size costs little."""
    entry = get_network(name)
    small = replace(entry, arguments={**entry.arguments, **reduced(name)})
    monkeypatch.setitem(_registry._networks, name, small)


@pytest.mark.parametrize("name,patch_size", [*forms(SMALLEST), *COMPARED_FORMS])
@pytest.mark.parametrize("check", [c for c in NETWORK_CHECKS if c not in SLOW_CHECKS], ids=check_name)
@pytest.mark.usefixtures("registered_small")
def test_contract(check, name, patch_size):
    check(name, patch_size)


@pytest.mark.parametrize("name,patch_size", one_form(EACH_CLASS, patches=COMPILED))
@pytest.mark.parametrize("check", SLOW_CHECKS, ids=check_name)
@pytest.mark.usefixtures("registered_small")
def test_slow_parts_of_the_contract(check, name, patch_size):
    check(name, patch_size)


@pytest.mark.parametrize(
    "name,patch_size", one_form(n for n in SMALLEST if "full_resolution_channels" in get_network(n).override_names)
)
@pytest.mark.parametrize("check", [c for c in NETWORK_CHECKS if c not in SLOW_CHECKS], ids=check_name)
def test_contract_with_a_branch_at_full_resolution(check, name, patch_size, monkeypatch):
    entry = get_network(name)
    branched = replace(entry, arguments={**entry.arguments, "full_resolution_channels": 4})
    monkeypatch.setitem(_registry._networks, name, branched)
    check(name, patch_size)


@pytest.mark.parametrize("name", [n for n in INSTALLED if is_ours(n) and (not is_compared(n) or n in EACH_CLASS)])
def test_tables_without_weight_decay(name):
    """No others than these, by the names of today's layers; networks of installed packages have layers of their own."""
    for ndim in get_network(name).dimensions:
        with without_data():
            network = create_network(name, 1, 2, PATCHES[f"{ndim}d"], deep_supervision=True)
        names = [n for n, _ in network.named_parameters()]
        assert network.no_weight_decay() == {
            n for n in names if n.endswith(("bias.table", "bias_table", "position.weight", "cls_token", "reg_token"))
        }
        assert (network.no_weight_decay() == set()) == name.startswith(("res", "mednext"))


def test_tokens_without_weight_decay():
    with without_data():
        trunk = MiTTrunk(1, (64, 64), ssl_token=True)
    positions = [n for n, _ in trunk.named_parameters() if n.endswith((".position.weight", ".token_position"))]
    assert no_weight_decay(trunk) == {"encoder.token", *positions}
    assert len(positions) == 14


def outputs_and_gradients(call, network, image):
    torch.manual_seed(1)
    outputs = call(image)
    gradients = torch.autograd.grad(sum(o.square().mean() for o in outputs), list(network.parameters()))
    return [*outputs, *gradients]


def with_drop_path(name, ndim):
    """``smallest_overrides``, and stochastic depth if the network has it."""
    rate = {"drop_path_rate": 0.2} if "drop_path_rate" in get_network(name).override_names else {}
    return {**smallest_overrides(name, ndim), **rate}


@pytest.mark.parametrize("name,patch_size", one_form(SMALLEST, patches=COMPILED))
def test_compiles_without_graph_breaks(name, patch_size):
    """In training, stochastic depth and backward included; inference does less."""
    overrides = with_drop_path(name, len(patch_size))
    # float64: instance norm over few elements magnifies the rounding of float32
    network = create_network(name, 1, 2, patch_size, deep_supervision=True, **overrides).double()
    image = torch.randn(1, 1, *patch_size, dtype=torch.float64)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    results = [outputs_and_gradients(call, network, image) for call in (compiled, network)]
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


def test_activation_checkpointing_compiles_without_graph_breaks():
    patch_size = COMPILED["2d"]
    overrides = {**smallest_overrides("qt_unet_tiny", 2), "drop_path_rate": 0.0, "activation_checkpointing": True}
    network = create_network("qt_unet_tiny", 1, 2, patch_size, deep_supervision=True, **overrides)
    image = torch.randn(1, 1, *patch_size)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    results = [outputs_and_gradients(call, network, image) for call in (compiled, network)]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name,patch_size", forms(["qt_unet_tiny", "resnet18_unet"], 2, patches=COMPILED))
def test_compiles_once_for_each_part_of_training(name, patch_size):
    """nnU-Net's training steps, their validation, and the last validation, which switches deep supervision off."""
    torch.compiler.reset()
    network = create_network(name, 1, 2, patch_size, deep_supervision=True, **smallest_overrides(name, 2))
    image, counter = torch.randn(2, 1, *patch_size), CompileCounter()
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for _ in range(2):
        for training, deep_supervision in ((True, True), (False, True), (False, False)):
            compiled.train(training)
            compiled._orig_mod.decoder.deep_supervision = deep_supervision
            with torch.set_grad_enabled(training):
                outputs = compiled(image)
                assert isinstance(outputs, list) == deep_supervision
                expected = network(image)  # fills caches, on which a compiled call must not depend
            if not training:
                torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 3


class _Synchronisations(TorchDispatchMode):
    """Records operations that wait for the device or take tensors of another one."""

    waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if func.overloadpacket._qualified_op_name in self.waits or any(t.device.type != "meta" for t in tensors):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST, patches=COMPILED))
def test_training_step_leaves_the_device_alone(name, patch_size):
    """CUDA graphs require that no value goes to the host and no tensor comes from there. Meta stands for a GPU."""
    with torch.device("meta"):
        network = create_network(
            name, 1, 2, patch_size, deep_supervision=True, **smallest_overrides(name, len(patch_size))
        )
        image = torch.empty(2, 1, *patch_size)
    with _Synchronisations() as synchronisations:
        sum(o.square().mean() for o in network(image)).backward()
        assert synchronisations.found == []
        image + torch.tensor(1.0)
        assert "aten.add.Tensor" in synchronisations.found


@pytest.mark.parametrize("name,patch_size", one_form(SMALLEST, patches=COMPILED))
def test_onnx(name, patch_size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = create_network(name, 1, 2, patch_size, **smallest_overrides(name, len(patch_size))).eval()
    image = torch.randn(1, 1, *patch_size)
    path = tmp_path / "network.onnx"
    torch.onnx.export(network, (image,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), network(image), rtol=1e-3, atol=1e-4)


def test_unknown_names_suggest_known_ones():
    with pytest.raises(ValueError, match="did you mean qt_unet_tiny"):
        create_network("qt_unet_tyni", 1, 2, (64, 64))
    with pytest.raises(ValueError, match=r"has no window_size; overrides: .*window_sizes"):
        create_network("qt_unet_tiny", 1, 2, (64, 64), window_size=7)


class TestNetworksIn2D:
    IN_2D = sorted(set(list_networks(2)) - set(list_networks(3)))

    def test_list(self):
        assert set(list_networks()) == {*list_networks(2), *list_networks(3)}
        assert {"setr_pup", "resnet50_unet"} <= set(self.IN_2D)
        assert "qt_unet_tiny" in list_networks(3)

    @pytest.mark.parametrize("name", IN_2D)
    def test_have_no_3d_form(self, name):
        with pytest.raises(ValueError, match=r"has no 3D form, only 2D: patch_size \(32, 64, 64\)"):
            create_network(name, 1, 2, (32, 64, 64))
