"""Labels and probabilities of logits that arrive in slabs, against nnU-Net's export of the whole."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import weakref
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference import export_prediction
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_transformers.export import (
    ImageExport,
    export_prediction_from_logits,
    label_map,
    separable_resampling,
)
from nnunet_transformers.export.label_map import rounded

LABELS = LabelManager({"background": 0, "liver": 1, "kidney": 2, "spleen": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3}, [1, 2, 3])
# spacings that resample all axes alike, or the first, second or third separately; thick slices on either side
ISOTROPIC, TURNS = (1.0, 1.0, 1.0), [(5.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 5.0), (5.0, 5.0, 1.0)]
SIZES = [((7, 9, 8), (11, 6, 13)), ((7, 9, 8), (7, 20, 3)), ((3, 5, 6), (9, 5, 6)), ((1, 4, 5), (1, 9, 7))]


def default(order: int = 1, order_z: int = 0, force_separate_z: bool | None = None) -> partial:
    return partial(
        resample_data_or_seg_to_shape, is_seg=False, order=order, order_z=order_z, force_separate_z=force_separate_z
    )


def seen_branches() -> set:
    """What the parameters below make of nnU-Net's choice of axes: whether it separates one, and which."""
    pairs = [(current, new) for current, new, _ in BRANCHES]
    return {determine_do_sep_z_and_axis(None, current, new) for current, new in pairs}


BRANCHES = [(a, b, f) for f in (None, True, False) for a, b in [(ISOTROPIC, ISOTROPIC), *product(TURNS, [ISOTROPIC])]]
BRANCHES += [(ISOTROPIC, turn, None) for turn in TURNS]


def test_the_branches_are_all():
    assert seen_branches() == {(False, None), (True, 0), (True, 1), (True, 2)}
    parameters = list(inspect.signature(resample_data_or_seg_to_shape).parameters)
    assert parameters[4:] == ["is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"]


@pytest.mark.parametrize(("order", "order_z"), list(product((0, 1), (0, 1))))
def test_each_branch_in_double_precision(order, order_z):
    rng = np.random.default_rng(0)
    for (current, new, force), (shape, new_shape) in product(BRANCHES, SIZES):
        function = default(order, order_z, force)
        values = rng.standard_normal((2, *shape))
        expected = function(values, new_shape, current, new)
        resampling = separable_resampling(function, shape, new_shape, current, new)
        half = new_shape[0] // 2
        for one, theirs in zip(torch.from_numpy(values), expected, strict=True):
            parts = [resampling.planes(one, first, last, 0) for first, last in ((0, half), (half, new_shape[0]))]
            np.testing.assert_allclose(torch.cat(parts), theirs, rtol=0, atol=1e-13)


def test_what_is_left_to_nnunet():
    for function in (
        default(order=3),
        default(order_z=3),
        partial(resample_data_or_seg_to_shape, is_seg=True),
        partial(resample_torch_fornnunet, is_seg=False),
    ):
        assert separable_resampling(function, (4, 4, 4), (5, 5, 5), ISOTROPIC, ISOTROPIC) is None


def test_rounding_is_numpys():
    """To the nearest float16, to even between two; float32 in between would round 1 + 2^-11 + 2^-30 to 1."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 1, 10**4, dtype=torch.double, generator=generator)
    values[values.abs() < 2**-14] = 0  # these have fewer bits in float16
    values[0, 0, :3] = torch.tensor([1 + 2**-11, 1 + 2**-11 + 2**-30, 65519.0], dtype=torch.double)
    # an interpolation that leaves the middle as it is
    identity = separable_resampling(default(), (1, 1, 10**4), (2, 1, 10**4), ISOTROPIC, ISOTROPIC)
    got = rounded(identity, values, 0, 1, 0, torch.half)
    np.testing.assert_array_equal(got, values.numpy().astype(np.float16).astype(float))
    assert values[0, 0, 1].float().half() != got[0, 0, 1]


class Case:
    """A model and an image's properties as nnU-Net has them.

    Args:
        function: of the plan's resampling.
        labels: labels or regions.
        shape: voxels of the image's part that is not zero, before resampling.
        turned: order of axes of the preprocessed image.
    """

    def __init__(self, function, labels=LABELS, shape=(6, 11, 9), spacing=ISOTROPIC, turned=(0, 1, 2)):
        self.labels = labels
        self.function = partial(function, current_spacing=ISOTROPIC, new_spacing=spacing)
        self.configuration = SimpleNamespace(spacing=[1.0, 1.0, 1.0], resampling_fn_probabilities=function)
        self.plans = SimpleNamespace(transpose_forward=list(turned), transpose_backward=list(np.argsort(turned)))
        self.properties = {
            "spacing": [spacing[i] for i in np.argsort(turned)],
            "shape_after_cropping_and_before_resampling": shape,
            "shape_before_cropping": tuple(n + 3 for n in shape),
            "bbox_used_for_cropping": [[1, n + 1] for n in shape],
        }

    def theirs(self, logits, probabilities=False):
        return export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, self.plans, self.configuration, self.labels, self.properties, probabilities, 1
        )

    def ours(self, logits, probabilities=False, slab=2, **arguments):
        export = ImageExport(
            self.plans, self.configuration, self.labels, self.properties, logits.shape[1:], probabilities, **arguments
        )
        export.add(logits[:, :1] + 1)  # of an attempt that a GPU's memory ends
        export.restart()
        for part in logits.split(slab, 1):
            export.add(part)
        return export.result if probabilities else export.result[0]


def assert_same_labels(ours, theirs, case, logits):
    """Expect equal labels, but where a value is between two of float16's and its last bit in float64 decides.

    There nnU-Net's order of summation, over eight voxels, rounds to one side by chance.
    """
    assert ours.dtype == theirs.dtype
    differ = ours != theirs
    if differ.any():
        exact = case.function(logits.double(), case.properties["shape_after_cropping_and_before_resampling"])
        inside = tuple(slice(*limits) for limits in case.properties["bbox_used_for_cropping"])
        values = [np.take_along_axis(exact, labels[inside][None].astype(int), 0)[0] for labels in (ours, theirs)]
        np.testing.assert_allclose(values[0], values[1], rtol=2**-10)
        assert differ.mean() < 0.01


def half_logits(labels, shape, scale=1.0):
    return (torch.randn(labels.num_segmentation_heads, *shape) * scale).half()


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("function", [default(), default(3), partial(resample_torch_fornnunet, is_seg=False)])
def test_labels_and_probabilities(labels, function):
    # weights of halves, quarters and eighths, which round nowhere
    case = Case(function, labels, (16, 7, 12), turned=(2, 0, 1), spacing=(2.0, 1.0, 1.0))
    logits = half_logits(labels, (8, 7, 6))
    np.testing.assert_array_equal(case.ours(logits), case.theirs(logits))
    ours, theirs = case.ours(logits, True), case.theirs(logits, True)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1].dtype == theirs[1].dtype
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(1, 9), st.sampled_from([0.01, 1.0, 30.0]))
def test_any_size_in_any_slabs(data, slab, scale):
    shape, new_shape = (tuple(data.draw(st.integers(1, 12)) for _ in range(3)) for _ in range(2))
    spacing = data.draw(st.sampled_from([ISOTROPIC, *TURNS]))
    case = Case(default(), shape=new_shape, spacing=spacing)
    # coarse values, so that many are equal after rounding
    logits = (half_logits(LABELS, shape, scale) * 4).round() / 4
    assert_same_labels(case.ours(logits, slab=slab), case.theirs(logits), case, logits)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_threads(labels, monkeypatch):
    """Slabs are computed at the same time, and PyTorch's threads are as many as before."""
    monkeypatch.setitem(label_map.SLAB_VOXELS, "cpu", 1)
    case = Case(default(), labels, (16, 14, 12))
    with torch.inference_mode():  # as logits are
        logits = half_logits(labels, (8, 7, 6))
    expected = case.ours(logits, True)
    torch.set_num_threads(3)
    np.testing.assert_array_equal(case.ours(logits), expected[0])
    for ours, alone in zip(case.ours(logits, True), expected, strict=True):
        np.testing.assert_array_equal(ours, alone)
    assert torch.get_num_threads() == 3


def test_more_labels_than_a_byte_holds():
    labels = LabelManager({"background": 0, **{f"label_{i}": i for i in range(1, 300)}}, None)
    case = Case(default(), labels, shape=(3, 4, 5))
    logits = half_logits(labels, (2, 3, 4))
    ours, theirs = case.ours(logits), case.theirs(logits)
    assert ours.dtype == theirs.dtype == np.uint16
    np.testing.assert_array_equal(ours, theirs)


def test_probabilities_on_a_full_disk(tmp_path, monkeypatch):
    """Their whole file is asked of the disk at once: a map of a file with holes would end the process instead."""

    def full(descriptor, offset, length):
        assert length > 4 * 3 * 4 * 5
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        Case(default()).ours(half_logits(LABELS, (4, 5, 6)), probabilities=True, folder=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="its temporary files have names, and go with their process too")
def test_the_probabilities_temporary_file_has_no_name(tmp_path):
    """A process that is killed leaves none in the folder of the results; when it is closed, the disk has its room."""
    case = Case(default(), shape=(8, 10, 12))
    logits = half_logits(LABELS, (4, 5, 6))
    export = ImageExport(case.plans, case.configuration, case.labels, case.properties, (4, 5, 6), True, tmp_path)
    export.add(logits)
    assert not list(tmp_path.iterdir())
    np.testing.assert_allclose(export.result[1], case.ours(logits, True)[1], atol=1e-6)
    mapped = weakref.ref(export.result[1])
    export.close()
    assert mapped() is None, "the disk has no room back"
    assert not list(tmp_path.iterdir())


def test_missing_planes():
    case = Case(default())
    export = ImageExport(case.plans, case.configuration, case.labels, case.properties, (4, 5, 6))
    export.add(half_logits(LABELS, (2, 5, 6)))
    with pytest.raises(RuntimeError, match="of 6 planes have logits"):
        export.result  # noqa: B018
    with pytest.raises(ValueError, match="logits of 3x5x5 voxels for an image of 4x5x6"):
        export.add(half_logits(LABELS, (1, 5, 5)))


def test_files_are_nnunets(tmp_path):
    written = {}

    class Writer:
        def write_seg(self, segmentation, path, properties):
            written[path] = segmentation

    case = Case(default(), shape=(8, 10, 12))
    logits = half_logits(LABELS, (4, 5, 6))
    case.plans.image_reader_writer_class = Writer
    case.plans.get_label_manager = lambda dataset: LABELS
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    for name, function in (
        ("ours", export_prediction_from_logits),
        ("theirs", export_prediction.export_prediction_from_logits),
    ):
        output = f"{tmp_path / name}/a"
        function(logits, case.properties, case.configuration, case.plans, {"file_ending": ".x"}, output, True)
        assert [path.name for path in sorted((tmp_path / name).iterdir())] == ["a.npz", "a.pkl"]
    np.testing.assert_array_equal(*written.values())
    ours, theirs = (np.load(tmp_path / name / "a.npz")["probabilities"] for name in ("ours", "theirs"))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
