"""Every registered network passes these; a new one is covered by being registered."""

from __future__ import annotations

import copy
import inspect
import json
import pickle

import pytest
import torch
from dynamic_network_architectures.architectures.abstract_arch import test_submodules_loadable as check_submodules
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_transformers.architectures import create_network, get_network, list_networks

# small patches that every published total stride divides, with an odd grid of tokens
PATCHES = {"2d": (64, 96), "3d": (32, 96, 32)}
# slices four times as thick as their pixels: what a planner makes of them
ANISOTROPIC = {"patch_embed_stride": (1, 4, 4), "merge_strides": [(1, 2, 2), (1, 2, 2), (2, 2, 2)]}


def smallest_of_each_class():
    """One network a class, not of the thesis's "-A" variants: the others are the same code with other numbers."""

    def size(name):
        with torch.device("meta"):
            network = create_network(name, 1, 2, PATCHES[f"{max(get_network(name).dimensions)}d"])
        return "_a_" in name, sum(p.numel() for p in network.parameters())

    classes = {}
    for name in list_networks():
        classes.setdefault(get_network(name).network_class, []).append(name)
    return [min(names, key=size) for names in classes.values()]


def forms(names, *dimensions, patches=PATCHES):
    """Parameters (name, patch_size) of every form that networks have, or of those with some numbers of axes."""
    return [
        pytest.param(name, patches[f"{n}d"], id=f"{name}-{n}d")
        for name in names
        for n in get_network(name).dimensions
        if n in (dimensions or (2, 3))
    ]


SMALLEST = smallest_of_each_class()
IN_3D = [name for name in SMALLEST if name in list_networks(3)]
CHECKPOINTED = [name for name in SMALLEST if "activation_checkpointing" in get_network(name).override_names]
BUFFERS_OF_BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name,patch_size", forms(list_networks()))
def test_every_network_runs(name, patch_size):
    network = create_network(name, 5, 2, patch_size).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 5, *patch_size)).shape == (1, 2, *patch_size)


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
class TestNetwork:
    def test_forward_and_backward(self, name, patch_size):
        network = create_network(name, 2, 5, patch_size)
        output = network(torch.randn(1, 2, *patch_size))
        assert output.shape == (1, 5, *patch_size)
        output.square().mean().backward()
        assert [n for n, p in network.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in network.parameters())

    def test_deep_supervision_as_nnunet_scales_it(self, name, patch_size):
        network = create_network(name, 1, 3, patch_size, deep_supervision=True)
        outputs = network(torch.randn(2, 1, *patch_size))
        assert len(outputs) == len(network.strides) - 1
        assert outputs[0].shape[2:] == patch_size
        total = [1] * len(patch_size)
        for output, stride in zip(outputs, network.strides, strict=False):
            total = [t * s for t, s in zip(total, stride, strict=True)]
            assert output.shape == (2, 3, *(p // t for p, t in zip(patch_size, total, strict=True)))
        weights = [2.0**-i for i in range(len(outputs))]
        loss = DeepSupervisionWrapper(nn.MSELoss(), weights)
        loss(outputs, [torch.zeros_like(o) for o in outputs]).backward()
        assert [n for n, p in network.named_parameters() if p.grad is None] == []

    def test_switch_of_deep_supervision(self, name, patch_size):
        network = create_network(name, 1, 3, patch_size, deep_supervision=True).eval()
        image = torch.randn(1, 1, *patch_size)
        with torch.no_grad():
            full = network(image)[0]
            network.decoder.deep_supervision = False
            torch.testing.assert_close(network(image), full)

    def test_strict_load_between_training_and_inference(self, name, patch_size):
        trained = create_network(name, 1, 3, patch_size, deep_supervision=True).eval()
        image = torch.randn(1, 1, *patch_size)
        for heads in (None, True):
            network = create_network(name, 1, 3, patch_size, auxiliary_heads=heads).eval()
            network.load_state_dict(trained.state_dict(), strict=True)
            with torch.no_grad():
                torch.testing.assert_close(network(image), trained(image)[0])

    def test_pickle_and_copy(self, name, patch_size):
        network = create_network(name, 1, 2, patch_size).eval()
        image = torch.randn(1, 1, *patch_size)
        with torch.no_grad():
            expected = network(image)
            for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
                torch.testing.assert_close(twin(image), expected)

    def test_alone_and_in_a_batch(self, name, patch_size):
        # float64: instance norm over few elements magnifies the rounding of float32
        network = create_network(name, 1, 2, patch_size).double().eval()
        images = torch.randn(2, 1, *patch_size, dtype=torch.float64)
        with torch.no_grad():
            together = network(images)
            alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)

    def test_features_for_pretraining(self, name, patch_size):
        network = create_network(name, 1, 2, patch_size)
        features = network.encode(torch.randn(2, 1, *patch_size))
        assert len(features) == len(network.feature_strides) == len(network.feature_channels)
        for f, stride, channels in zip(features, network.feature_strides, network.feature_channels, strict=True):
            assert f.shape == (2, channels, *(p // s for p, s in zip(patch_size, stride, strict=True)))
        sum(f.square().mean() for f in features).backward()
        parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
        for parameter_name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter_name.startswith(parts), parameter_name

    def test_weight_loading_contract(self, name, patch_size):
        network = create_network(name, 1, 2, patch_size)
        check_submodules(network)
        keys = list(network.state_dict())
        prefixes = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.", "decoder.")
        assert all(sum(key.startswith(p) for p in prefixes) == 1 for key in keys)
        assert any(key.startswith("decoder.seg_layers.") for key in keys)
        # buffers would have to match in nnU-Net's -pretrained_weights
        parameters = {n for n, _ in network.named_parameters()}
        assert {key for key in keys if not key.endswith(BUFFERS_OF_BATCH_NORM)} == parameters
        assert not hasattr(network, "initialize")

    def test_seed_reproduces_initialisation(self, name, patch_size):
        states = []
        for _ in range(2):
            torch.manual_seed(7)
            states.append(create_network(name, 1, 2, patch_size).state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

    def test_size_that_cannot_work_names_axis_and_neighbours(self, name, patch_size):
        bad = (*patch_size[:-1], 50)
        step = create_network(name, 1, 2, patch_size).feature_strides[-1][-1]
        near = f"{50 // step * step} or {50 // step * step + step}"
        with pytest.raises(ValueError, match=rf"axis \d \(width\) has size 50.*nearest valid sizes: {near}"):
            create_network(name, 1, 2, bad)

    def test_image_of_another_size(self, name, patch_size):
        network = create_network(name, 1, 2, patch_size)
        with pytest.raises(ValueError, match=r"axis 1 .* built for patch_size"):
            network(torch.zeros(1, 1, patch_size[0], 7, *patch_size[2:]))

    def test_arguments_by_which_plans_build_it(self, name, patch_size):
        entry = get_network(name)
        module, _, attribute = entry.class_path.rpartition(".")
        assert getattr(__import__(module, fromlist=[attribute]), attribute) is entry.network_class
        parameters = inspect.signature(entry.network_class).parameters
        assert {"input_channels", "num_classes", "patch_size", "deep_supervision", "strides"} <= parameters.keys()


@pytest.mark.parametrize("name", IN_3D)
def test_anisotropic_strides(name):
    patch_size = (10, 64, 32)
    network = create_network(name, 1, 3, patch_size, deep_supervision=True, **ANISOTROPIC)
    outputs = network(torch.randn(1, 1, *patch_size))
    total = torch.tensor(network.strides).cumprod(0)
    assert [tuple(o.shape[2:]) for o in outputs] == [tuple(torch.tensor(patch_size) // t) for t in total[:-1]]
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
def test_built_again_from_its_arguments_as_json(name, patch_size):
    """A plan outlives a change of defaults: with every argument written out, the same network comes back."""
    patch_size, ndim = list(patch_size), len(patch_size)
    network = create_network(name, 2, 3, patch_size, auxiliary_heads=True)
    entry = get_network(name)
    arguments = {**entry.all_arguments(ndim), **network.resolved_arguments, "strides": network.strides}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    arguments = json.loads(json.dumps({**arguments, "patch_size": patch_size, "auxiliary_heads": True}))
    assert set(entry.override_names) - set(arguments) == set()
    twin = entry.network_class(input_channels=2, num_classes=3, **arguments)
    twin.load_state_dict(network.state_dict(), strict=True)


COMPILED = {"2d": (64, 32), "3d": (32, 32, 64)}


def shallow(name, ndim):
    """A network with as few layers as still have every kind: what compiles and exports does so at any depth."""
    fewest = {"depths": (2, 1, 1, 1), "depth": 2}
    own = get_network(name).all_arguments(ndim)
    # MiT's published depths are fewer still; None is the network's own choice
    return {
        key: tuple(map(min, few, own[key])) if isinstance(own[key], tuple) else few
        for key, few in fewest.items()
        if key in own
    }


def compiled_forms():
    """Every form in inference, the larger one of a network in training as well."""
    largest = [forms([name], max(get_network(name).dimensions), patches=COMPILED)[0] for name in SMALLEST]
    for training, cases in ((False, forms(SMALLEST, patches=COMPILED)), (True, largest)):
        for case in cases:
            yield pytest.param(*case.values, training, id=f"{case.id}-{'training' if training else 'inference'}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name,patch_size", forms(SMALLEST, patches=COMPILED))
def test_autocast_is_finite(name, patch_size, dtype):
    network = create_network(name, 1, 2, patch_size)
    with torch.autocast("cpu", dtype):
        output = network(1e3 * torch.randn(1, 1, *patch_size))
    output.float().mean().backward()
    assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name,patch_size", forms(CHECKPOINTED, 2, patches=COMPILED))
def test_activation_checkpointing_changes_no_output_and_no_gradient(name, patch_size):
    """Stochastic depth included: what is computed again draws the same random numbers."""
    images = torch.randn(2, 1, *patch_size, dtype=torch.float64)
    overrides = {**shallow(name, len(patch_size)), "drop_path_rate": 0.5}
    results = []
    for active in (False, True):
        torch.manual_seed(1)
        network = create_network(
            name, 1, 2, patch_size, deep_supervision=True, activation_checkpointing=active, **overrides
        ).double()
        outputs = network(images)
        sum(o.square().mean() for o in outputs).backward()
        results.append([*outputs, *(p.grad for p in network.parameters()), *network.buffers()])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST))
def test_buffers_are_statistics(name, patch_size):
    """DistributedDataParallel sends each buffer to every process in each step."""
    with torch.device("meta"):
        network = create_network(name, 1, 2, patch_size)
    assert all(key.endswith(BUFFERS_OF_BATCH_NORM) for key, _ in network.named_buffers())


def outputs_and_gradients(call, network, image):
    torch.manual_seed(1)
    outputs = call(image)
    gradients = torch.autograd.grad(sum(o.square().mean() for o in outputs), list(network.parameters()))
    return [*outputs, *gradients]


@pytest.mark.parametrize("name,patch_size,training", compiled_forms())
def test_compiles_without_graph_breaks(name, patch_size, training):
    """Stochastic depth and backward included."""
    overrides = {**shallow(name, len(patch_size)), "drop_path_rate": 0.2}
    network = create_network(name, 1, 2, patch_size, deep_supervision=training, **overrides).train(training)
    image = torch.randn(1, 1, *patch_size)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    if training:
        # float64: instance norm over few elements magnifies the rounding of float32
        network, image = network.double(), image.double()
        results = [outputs_and_gradients(call, network, image) for call in (compiled, network)]
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)
    else:
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), network(image), rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_compiles_without_graph_breaks():
    patch_size = COMPILED["2d"]
    overrides = {**shallow("qt_unet_tiny", 2), "drop_path_rate": 0.0, "activation_checkpointing": True}
    network = create_network("qt_unet_tiny", 1, 2, patch_size, deep_supervision=True, **overrides)
    image = torch.randn(1, 1, *patch_size)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    results = [outputs_and_gradients(call, network, image) for call in (compiled, network)]
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name,patch_size", forms(["qt_unet_tiny", "resnet18_unet"], 2, patches=COMPILED))
def test_compiles_once_for_each_part_of_training(name, patch_size):
    """nnU-Net's training steps, their validation, and the last validation, which switches deep supervision off."""
    torch.compiler.reset()
    network = create_network(name, 1, 2, patch_size, deep_supervision=True, **shallow(name, 2))
    image, counter = torch.randn(2, 1, *patch_size), CompileCounter()
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for _ in range(2):
        for training, deep_supervision in ((True, True), (False, True), (False, False)):
            compiled.train(training)
            compiled._orig_mod.decoder.deep_supervision = deep_supervision
            with torch.set_grad_enabled(training):
                assert isinstance(compiled(image), list) == deep_supervision
                network(image)  # fills caches that a compiled call must not depend on
    assert counter.frame_count == 3


class _Synchronisations(TorchDispatchMode):
    """Operations that wait for the device, or that take tensors of another one."""

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
    """What CUDA graphs ask for: no number goes to the host, no tensor comes from there. Meta stands for a GPU."""
    with torch.device("meta"):
        network = create_network(name, 1, 2, patch_size, deep_supervision=True, **shallow(name, len(patch_size)))
        image = torch.empty(2, 1, *patch_size)
    with _Synchronisations() as synchronisations:
        sum(o.square().mean() for o in network(image)).backward()
        assert synchronisations.found == []
        image + torch.tensor(1.0)
        assert "aten.add.Tensor" in synchronisations.found


@pytest.mark.parametrize("name,patch_size", forms(SMALLEST, patches=COMPILED))
def test_onnx(name, patch_size, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = create_network(name, 1, 2, patch_size, **shallow(name, len(patch_size))).eval()
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
        assert list_networks() == list_networks(2)
        assert {"setr_pup", "resnet50_unet"} <= set(self.IN_2D)
        assert "qt_unet_tiny" in list_networks(3)

    @pytest.mark.parametrize("name", IN_2D)
    def test_have_no_3d_form(self, name):
        with pytest.raises(ValueError, match=r"has no 3D form, only 2D: patch_size \(32, 64, 64\)"):
            create_network(name, 1, 2, (32, 64, 64))
