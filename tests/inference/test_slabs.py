"""The sliding window in slabs against nnU-Net's, which holds the logits of the whole image."""

from __future__ import annotations

import pytest
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_transformers.inference import BatchedPredictor, accumulator
from nnunet_transformers.inference.accumulator import Accumulator, pad, planes_of, stages
from nnunet_transformers.inference.images import mean

from .test_predictor import SmallNetwork, make


def in_slabs(predictor: BatchedPredictor, data: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Return the mean logits of all slabs, and the first plane of each."""
    starts, slabs = [], []

    def take(first, folds):
        if first == 0:
            starts.clear()
            slabs.clear()
        starts.append(first)
        slabs.append(mean(folds))

    predictor.predict_slabs(data, take)
    return torch.cat(slabs, 1), starts


def both(ndim, patch_size, size, folds=1, axes=None, **options):
    network, data = SmallNetwork(ndim), torch.randn(1, *size)
    ours = make(BatchedPredictor, network, patch_size, axes, folds, batch_size=1, **options)
    theirs = make(nnUNetPredictor, network, patch_size, axes, folds, **options)
    return in_slabs(ours, data)[0], theirs.predict_logits_from_preprocessed_data(data)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 3),
    st.data(),
    st.sampled_from([0.25, 0.5, 0.7, 1.0]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_to_the_last_bit(ndim, data, step, folds, use_gaussian, flips):
    patch_size = tuple(data.draw(st.integers(2, 6)) for _ in range(ndim))
    size = tuple(data.draw(st.integers(1, 12)) for _ in range(3))
    options = {"tile_step_size": step, "use_gaussian": use_gaussian}
    ours, theirs = both(ndim, patch_size, size, folds, (0, 1) if flips else None, **options)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("ndim", "patch_size"), [(2, (6, 6)), (3, (4, 6, 6))])
def test_stages_of_slices_and_rows(ndim, patch_size, monkeypatch):
    """Slices are summed up a few at a time; with little memory one by one, with the same result."""
    ours, theirs = both(ndim, patch_size, (9, 8, 8), folds=2)
    monkeypatch.setattr(accumulator, "STAGE_BYTES", 0)
    one_by_one, _ = both(ndim, patch_size, (9, 8, 8), folds=2)
    assert torch.equal(ours, theirs)
    assert one_by_one.shape == ours.shape
    predictor = make(BatchedPredictor, SmallNetwork(ndim), patch_size)
    slicers = predictor._internal_get_sliding_window_slicers((9, 8, 8))
    assert [len(stage) for stage in stages(slicers, 1)] == ([4] * 9 if ndim == 2 else [4] * 4)
    monkeypatch.setattr(accumulator, "STAGE_BYTES", 4)
    assert [len(stage) for stage in stages(slicers, 1)] == ([16, 16, 4] if ndim == 2 else [4] * 4)


def test_memory_does_not_grow_with_the_image(monkeypatch):
    """The sums have as many planes as the patch, however long the image."""
    planes = []
    initialise = Accumulator.__init__

    def noted(self, folds, classes, planes_kept, *others):
        planes.append(planes_kept)
        initialise(self, folds, classes, planes_kept, *others)

    monkeypatch.setattr(Accumulator, "__init__", noted)
    predictor = make(BatchedPredictor, SmallNetwork(3), (4, 6, 6), batch_size=1)
    longest = []
    for length in (8, 40):
        _, starts = in_slabs(predictor, torch.zeros(1, length, 6, 6))
        longest.append(max(b - a for a, b in zip(starts, [*starts[1:], length], strict=True)))
    assert planes == [4, 4]
    assert longest == [4, 4]


def test_finished_planes_are_handed_on_in_pieces(monkeypatch):
    """Of a limited size, since export copies them, with the same logits; padding is left out."""
    predictor = make(BatchedPredictor, SmallNetwork(3), (4, 6, 6), batch_size=1, folds=2)
    for size in ((11, 6, 6), (3, 6, 6)):
        data = torch.randn(1, *size)
        expected, _ = in_slabs(predictor, data)
        # two planes of 3 classes, 2 folds and 36 voxels in float16
        monkeypatch.setattr("nnunet_transformers.inference.predictor.FINISHED_BYTES", 2 * 3 * 2 * 36 * 2 + 1)
        found, starts = in_slabs(predictor, data)
        monkeypatch.undo()
        assert torch.equal(found, expected)
        assert max(b - a for a, b in zip(starts, [*starts[1:], size[0]], strict=True)) == 2


def test_a_device_that_is_too_small_begins_again():
    """As nnU-Net, with the sums in main memory; what was handed on before is replaced."""
    network, data = SmallNetwork(3), torch.randn(1, 9, 8, 6)
    predictor = make(BatchedPredictor, network, (4, 6, 6), batch_size=1)
    expected, starts = in_slabs(predictor, data)
    predictor.perform_everything_on_device = True

    def fail_once(first, folds):
        if first > 0 and len(seen) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append((first, mean(folds)))

    seen: list = []
    predictor.predict_slabs(data, fail_once)
    assert [first for first, _ in seen] == [0, *starts]
    assert torch.equal(torch.cat([logits for _, logits in seen[1:]], 1), expected)


def test_every_fold_has_its_own_half_precision_weights():
    """As alone, though autocast caches the weights of the fold before; a GPU's autocast spans all folds."""
    data = torch.randn(1, 9, 8, 8)
    predictor, found = make(BatchedPredictor, SmallNetwork(3), (4, 6, 6), folds=2, batch_size=1), []
    folds = predictor.list_of_parameters
    for parameters in (folds, folds[:1], folds[1:]):
        predictor.list_of_parameters, slabs = parameters, []
        # inference mode keeps nothing in newer PyTorch
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            predictor._predict_slabs(data, lambda first, logits, slabs=slabs: slabs.append([x.clone() for x in logits]))
        found.append([torch.cat(fold, 1) for fold in zip(*slabs, strict=True)])
    (together, other), (alone,), (other_alone,) = found
    assert torch.equal(together, alone) and torch.equal(other, other_alone)
    assert not torch.equal(alone, other_alone)


def test_logits_that_exceed_float16():
    network = SmallNetwork(3)
    network[-1].bias.data.fill_(1e5)
    predictor = make(BatchedPredictor, network, (4, 6, 6), batch_size=1)
    with pytest.raises(ValueError, match="exceed float16"):
        in_slabs(predictor, torch.randn(1, 9, 8, 6))


@pytest.mark.parametrize(("size", "patch_size"), [((3, 5, 9), (6, 6, 6)), ((3, 5, 9), (8, 12)), ((7, 7, 7), (6, 6, 6))])
def test_padding_is_nnunets(size, patch_size):
    image = torch.randn(2, *size)
    ours, inside = pad(image, patch_size)
    theirs, slicer = pad_nd_image(image, patch_size, "constant", {"value": 0}, True, None)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[:, inside[0], inside[1], inside[2]], theirs[tuple(slicer)])


def test_planes_of_tiles():
    assert planes_of((slice(None), 3, slice(0, 2), slice(0, 2))) == (3, 4)
    assert planes_of((slice(None), slice(3, 7), slice(0, 2), slice(0, 2))) == (3, 7)
