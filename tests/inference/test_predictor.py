"""The batched sliding window against nnU-Net's."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunet_transformers.cpu.linear import CPULinear
from nnunet_transformers.inference import BatchedPredictor
from nnunet_transformers.inference.batch_size import GPU_SHARE, GPU_VOXELS, cpu_batch_size, fitting_batch_size
from tests.trainers.conftest import CPU

# for logits around 1 that are summed in float16: three of its steps
TOLERANCE = 3 * 2**-10


class SmallNetwork(nn.Sequential):
    """Network that is not symmetric, depends on the whole patch and records its batch sizes.

    Args:
        ndim: number of spatial axes, 2 or 3.
        limit: number of patches at which it runs out of memory.
    """

    def __init__(self, ndim: int, channels: int = 1, limit: int | None = None) -> None:
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[ndim]
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[ndim]
        super().__init__(conv(channels, 4, 3, padding=1), norm(4), nn.LeakyReLU(inplace=True), conv(4, 3, 1))
        self.limit = limit
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if self.limit is not None and len(x) >= self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def make(kind: type[nnUNetPredictor], network: nn.Module, patch_size, axes=None, folds: int = 1, **options):
    """Create a predictor without a model folder."""
    predictor = kind(device=CPU, allow_tqdm=False, **options)
    parameters = [{k: v + 0.05 * n for k, v in network.state_dict().items()} for n in range(folds)]
    predictor.manual_initialization(
        network, SimpleNamespace(get_label_manager=lambda _: None), None, parameters, {}, "", axes
    )
    predictor.configuration_manager = SimpleNamespace(patch_size=patch_size)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    return predictor


def both(network, patch_size, size, batch_size=None, axes=None, channels=1, folds=1, **options):
    """Compute the logits of ``BatchedPredictor`` and of nnU-Net's predictor."""
    data = torch.randn(channels, *size)
    theirs = make(nnUNetPredictor, network, patch_size, axes, folds, **options)
    ours = make(BatchedPredictor, network, patch_size, axes, folds, batch_size=batch_size, **options)
    return tuple(predictor.predict_logits_from_preprocessed_data(data) for predictor in (ours, theirs))


def assert_close(ours, theirs):
    assert ours.dtype == theirs.dtype == torch.float16
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    # labels differ only where two classes are equally likely
    best = theirs.float().topk(2, 0).values
    assert ((best[0] - best[1])[ours.argmax(0) != theirs.argmax(0)] <= 2 * TOLERANCE).all()


AXES = {ndim: [c for n in range(1, ndim + 1) for c in combinations(range(ndim), n)] for ndim in (2, 3)}


@pytest.mark.parametrize("axes", [None, *AXES[3]])
def test_every_mirroring_in_3d(axes):
    assert_close(*both(SmallNetwork(3), (6, 8, 4), (11, 13, 9), 3, axes))


@pytest.mark.parametrize("axes", [None, *AXES[2]])
def test_every_mirroring_in_2d(axes):
    assert_close(*both(SmallNetwork(2), (8, 6), (3, 13, 9), 5, axes))


def test_mirroring_can_be_switched_off():
    network = SmallNetwork(3)
    assert_close(*both(network, (6, 8, 4), (11, 13, 9), 2, (0, 1, 2), use_mirroring=False))
    # 3 x 3 x 4 tiles, in twos and one by one
    assert network.batches == [2] * 18 + [1] * 36


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 3),
    st.data(),
    st.integers(1, 9),
    st.sampled_from([0.25, 0.5, 0.7, 1.0]),
    st.integers(1, 2),
    st.booleans(),
)
def test_sizes_steps_and_batches(ndim, data, batch_size, step, folds, use_gaussian):
    patch_size = tuple(data.draw(st.integers(2, 6)) for _ in range(ndim))
    size = tuple(data.draw(st.integers(1, 9)) for _ in range(3))
    axes = data.draw(st.sampled_from([None, *AXES[ndim]]))
    channels = data.draw(st.integers(1, 2))
    options = {"tile_step_size": step, "use_gaussian": use_gaussian}
    assert_close(*both(SmallNetwork(ndim, channels), patch_size, size, batch_size, axes, channels, folds, **options))


@pytest.mark.parametrize("axes", [None, (0, 1, 2)])
def test_passes_of_one_patch_are_nnunets_own_to_the_last_bit(axes):
    ours, theirs = both(SmallNetwork(3), (6, 8, 4), (11, 13, 9), 1, axes, folds=2)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_cpu_kernels_are_for_more_than_nnunets_own_passes(batch_size):
    network = nn.Sequential(nn.Linear(4, 3))
    make(BatchedPredictor, network, (6, 8, 4), batch_size=batch_size)
    assert isinstance(network[0], CPULinear) == (batch_size != 1)


def test_tiles_in_double_precision():
    network, data = SmallNetwork(3, 2).double(), torch.randn(2, 11, 13, 9, dtype=torch.double)
    ours, theirs = (make(kind, network, (6, 8, 4), (0, 2)) for kind in (BatchedPredictor, nnUNetPredictor))
    ours.batch_size = 7
    slicers = ours._internal_get_sliding_window_slicers(data.shape[1:])
    with torch.inference_mode():
        for slicer, tile in zip(slicers, ours._predict_tiles(data, slicers), strict=True):
            expected = theirs._internal_maybe_mirror_and_predict(data[slicer][None])
            torch.testing.assert_close(tile, expected, rtol=1e-10, atol=1e-10)


def test_passes_are_full_and_cross_tiles():
    network = SmallNetwork(3)
    both(network, (6, 8, 4), (6, 8, 7), 5, (0, 1))
    # 3 tiles with 4 flips in fives, then nnU-Net's one by one
    assert network.batches == [5, 5, 2] + [1] * 12


@pytest.mark.parametrize("limit", [2, 4, 9])
def test_out_of_memory_halves_the_batch(limit):
    network = SmallNetwork(3)
    data = torch.randn(1, 11, 13, 9)
    expected = make(nnUNetPredictor, network, (6, 8, 4), (0, 1)).predict_logits_from_preprocessed_data(data)
    network.limit = limit
    predictor = make(BatchedPredictor, network, (6, 8, 4), (0, 1), batch_size=8)
    assert_close(predictor.predict_logits_from_preprocessed_data(data), expected)
    remaining = max(b for b in (1, 2, 4, 8) if b < limit)
    network.batches.clear()
    predictor.predict_logits_from_preprocessed_data(data)
    assert max(network.batches) == remaining
    # the limit of one network does not apply to another
    other = SmallNetwork(3)
    labels = SimpleNamespace(get_label_manager=lambda _: predictor.label_manager)
    plan = predictor.configuration_manager
    predictor.manual_initialization(other, labels, plan, [other.state_dict()], {}, "", (0, 1))
    predictor.predict_logits_from_preprocessed_data(data)
    assert max(other.batches) == 8


def test_out_of_memory_with_one_patch_is_nnunets_to_handle():
    network = SmallNetwork(3, limit=1)
    predictor = make(BatchedPredictor, network, (6, 8, 4), batch_size=4)
    with pytest.raises(torch.OutOfMemoryError):
        predictor.predict_logits_from_preprocessed_data(torch.randn(1, 6, 8, 4))
    network.limit = None
    assert predictor.predict_logits_from_preprocessed_data(torch.randn(1, 6, 8, 4)).shape == (3, 6, 8, 4)


def test_batch_size_by_itself():
    assert cpu_batch_size((64, 64)) == 4 * cpu_batch_size((128, 128))
    assert cpu_batch_size((64, 64, 64)) == cpu_batch_size((160, 160, 160)) == 1
    network = SmallNetwork(2)
    assert_close(*both(network, (64, 64), (40, 64, 64)))
    assert network.batches[0] == cpu_batch_size((64, 64))

    gigabyte = 2**30
    assert fitting_batch_size((64, 64, 64), gigabyte, 10 * gigabyte) == int(10 * GPU_SHARE)
    assert fitting_batch_size((64, 64, 64), 2 * gigabyte, gigabyte) == 1
    assert fitting_batch_size((128, 128, 128), gigabyte, 1000 * gigabyte) == GPU_VOXELS // 128**3


def test_a_device_that_is_not_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"-device cuda is not available on this machine; use -device cpu"):
        BatchedPredictor()


class TestCompiled:
    @pytest.fixture
    def compiled(self, monkeypatch):
        """Count compilations; compiled graphs run unchanged."""
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append([tuple(x.shape) for x in inputs])
            return graph.forward

        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda network, **options: compile_(network, backend=backend, **options))
        yield graphs
        torch._dynamo.reset()

    @pytest.mark.parametrize("batch_size", [None, 3])
    def test_once_for_all_images_and_folds(self, compiled, batch_size):
        network = nn.Sequential(*SmallNetwork(3))
        predictor = make(BatchedPredictor, network, (6, 8, 4), (0, 1), folds=2, batch_size=batch_size, use_compile=True)
        for size in ((11, 13, 9), (6, 8, 4), (7, 9, 8)):
            data = torch.randn(1, *size)
            theirs = make(nnUNetPredictor, network, (6, 8, 4), (0, 1), folds=1)
            theirs.list_of_parameters = predictor.list_of_parameters
            expected = theirs.predict_logits_from_preprocessed_data(data)
            assert_close(predictor.predict_logits_from_preprocessed_data(data), expected)
        assert len(compiled) == 1

    def test_nnunets_variable_decides(self, compiled, monkeypatch):
        monkeypatch.setenv("nnUNet_compile", "true")
        predictor = make(BatchedPredictor, nn.Sequential(*SmallNetwork(3)), (6, 8, 4))
        for size in ((11, 13, 9), (6, 8, 4)):
            predictor.predict_logits_from_preprocessed_data(torch.randn(1, *size))
        assert len(compiled) == 1
