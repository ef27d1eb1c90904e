"""The memory estimate against the memory that training keeps."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_transformers.architectures import create_network, get_network
from nnunet_transformers.cpu import attention, use_kernels
from nnunet_transformers.plans import memory
from nnunet_transformers.plans.memory import (
    _LiveBytes,
    keep_tables,
    pass_peak_bytes,
    training_peak_bytes,
    training_step_bytes,
)
from nnunet_transformers.plans.output_shapes import OutputShapes
from nnunet_transformers.testing.network import shallow
from tests.architectures.test_networks import CHECKPOINTED, SMALLEST, smallest_overrides

PATCH = (32, 32, 32)


def build():
    overrides = {**smallest_overrides("qt_unet_tiny", 3), "drop_path_rate": 0.0}
    return create_network("qt_unet_tiny", 1, 3, PATCH, deep_supervision=True, **overrides)


def test_linear_layers_can_be_counted_by_hand():
    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, x):
            return self.conv(x)

    own, peak = training_peak_bytes(Pointwise, 1, (16, 16, 16), 1, mixed_precision=False)
    voxels = 16**3
    assert own == 16 * 4
    # logits, their softmax and log-softmax at least, a few copies more at most
    assert 4 * voxels * 2 * 3 <= peak <= 4 * voxels * 2 * 10


DICE = {"batch_dice": False, "smooth": 1e-5, "ddp": False}


def nnunets_loss(logits, has_regions):
    """nnU-Net's loss of one output, with the targets that its augmentation makes."""
    channels = logits.shape[1] if has_regions else 1
    dtype = torch.bool if has_regions else torch.int16
    target = torch.zeros(logits.shape[0], channels, *logits.shape[2:], dtype=dtype)
    if has_regions:
        return DC_and_BCE_loss({}, {**DICE, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)(logits, target)
    loss = DC_and_CE_loss({**DICE, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    return loss(logits, target)


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("classes", [3, 20, 60])
def test_the_loss_takes_what_nnunets_takes(monkeypatch, classes, has_regions):
    def peak():
        def build():
            return create_network("mit_7", 1, classes, (64, 64, 64), deep_supervision=True)

        return training_peak_bytes(build, 1, (64, 64, 64), 2, has_regions=has_regions)[1]

    estimated = peak()
    for name in ("_region_loss", "_segmentation_loss"):  # whichever was taken
        monkeypatch.setattr(memory, name, lambda logits: nnunets_loss(logits, has_regions))
    assert estimated == pytest.approx(peak(), rel=0.04)


def test_a_pass_of_inference():
    """One layer's input and output are there at a time; tables that modules would keep stay out of the network."""
    layers = nn.Sequential(nn.Conv3d(2, 8, 1), nn.Conv3d(8, 8, 1), nn.Conv3d(8, 3, 1))
    assert pass_peak_bytes(layers, (2, 2, 4, 5, 6)) == 4 * 2 * (2 + 8 + 8) * 4 * 5 * 6
    network = build().eval()
    before = network.state_dict()
    patch = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(0))
    counted = pass_peak_bytes(network, patch.shape)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.no_grad(), _LiveBytes() as memory:
        keep_tables(network)(patch)
    assert counted == pytest.approx(memory.peak + patch.nbytes, rel=0.05)


CASES = [(name, {}) for name in SMALLEST]
CASES += [(name, {"activation_checkpointing": True}) for name in CHECKPOINTED]


@pytest.mark.parametrize("name,options", CASES)
def test_line_over_the_batch_holds_further_on(name, options):
    patch = PATCH if 3 in get_network(name).dimensions else (64, 64)
    overrides = {**shallow(name, len(patch)), **options}

    def build():
        return create_network(name, 1, 3, patch, deep_supervision=True, **overrides)

    fixed, sample = training_step_bytes(build, 1, patch)
    own, peak = training_peak_bytes(build, 1, patch, batch_size=8)
    assert own + peak == pytest.approx(fixed + 8 * sample, rel=0.03)


@pytest.mark.parametrize("name", ["unet2022_tiny", "mit_7"])
def test_kept_shapes_change_nothing(name, monkeypatch):
    def peak():
        return training_peak_bytes(lambda: create_network(name, 2, 3, PATCH, deep_supervision=True), 2, PATCH, 2)

    shapes = OutputShapes()
    monkeypatch.setattr(_LiveBytes, "_run", shapes)
    first = peak()
    known = len(shapes._known)
    assert known > 100
    assert peak() == first  # all from the shapes that are kept
    assert len(shapes._known) == known
    monkeypatch.setattr(OutputShapes, "kept", frozenset())
    assert peak() == first


def test_kept_shapes_are_of_the_same_call():
    """Of other types, sizes, strides and arguments, and of fake tensors on the CPU."""
    run, operation = OutputShapes(), torch.ops.aten.sum.dim_IntList

    def check(tensor, *args, **kwargs):
        for _ in range(2):
            found, expected = run(operation, (tensor, *args), kwargs), operation(tensor, *args, **kwargs)
            for one, other in ((found.shape, expected.shape), (found.dtype, expected.dtype)):
                assert one == other
            assert (found.stride(), found.device) == (expected.stride(), expected.device)

    image = torch.empty(2, 3, 4, device="meta")
    for dims, keep in (([1], False), ([1], True), ([0, 2], False)):
        for tensor in (image, image.half(), image.transpose(0, 2), image[:, :2]):
            check(tensor, dims, keep)
    check(image, [1], dtype=torch.float64)
    with FakeTensorMode():
        check(torch.empty(2, 3, 4), [1])


def test_kept_shapes_are_limited(monkeypatch):
    monkeypatch.setattr(OutputShapes, "limit", 3)
    run = OutputShapes()
    for size in range(1, 11):
        assert run(torch.ops.aten.flip.default, (torch.empty(size, device="meta"), [0]), {}).shape == (size,)
        assert len(run._known) <= 3


def test_half_precision_takes_less():
    assert training_step_bytes(build, 1, PATCH, mixed_precision=False)[1] > training_step_bytes(build, 1, PATCH)[1]


@pytest.mark.parametrize("windows", [1, 3, 5])
def test_few_chunks_of_attention_have_the_memory_of_all(windows, monkeypatch):
    """Backward takes so many of eight windows at once: 1 each, 3 + 3 + 2 or 5 + 3 of a sample."""
    heads, length, dim = 3, 256, 2

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))
            self.bias = nn.Parameter(torch.zeros(heads, length, length))

        def forward(self, x):
            q = (x * self.factor).reshape(-1, 8, length, heads, dim).transpose(2, 3)
            out = attention.WindowAttentionFunction.apply(q, q, q, self.bias, None, 1.0)
            return out.transpose(2, 3).reshape(x.shape).expand(-1, 2, -1, -1)

    def traced():
        return training_peak_bytes(Attention, 1, (8 * length, heads * dim), 2, mixed_precision=False)

    monkeypatch.setattr(attention, "CHUNK_ELEMENTS", windows * heads * length**2)
    few = traced()
    monkeypatch.setattr(attention, "TRACED_CHUNKS", 10**6)
    assert traced() == few


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_takes_less(name):
    patch = PATCH if 3 in get_network(name).dimensions else (128, 128)

    def peak(active):
        def build():
            return create_network(name, 1, 3, patch, activation_checkpointing=active)

        return training_peak_bytes(build, 1, patch, batch_size=8)

    (own, plain), (same, recomputed) = peak(False), peak(True)
    assert own == same
    assert recomputed < 0.8 * plain


def test_counts_at_least_what_backward_keeps():
    network, image = use_kernels(build()).train(), torch.randn(1, 1, *PATCH)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(image)
    saved = sum(kept.values())
    _, peak = training_peak_bytes(build, 1, PATCH, 1, mixed_precision=False)
    assert outputs[0].shape[2:] == PATCH
    assert saved * 0.9 < peak < 3 * saved
