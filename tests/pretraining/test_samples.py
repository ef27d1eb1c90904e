"""Pinned samples of every data module: a seed draws the samples that it drew when checkpoints were published."""

from __future__ import annotations

import pytest
import torch

from nnunet_transformers.pretraining.data import (
    FusedCropData,
    MaskedCropData,
    MaskedViewData,
    MatchedViewData,
    OverlappingViewData,
    TwoViewData,
)
from nnunet_transformers.pretraining.data.prepare import prepare
from nnunet_transformers.pretraining.fit import mask_grid
from nnunet_transformers.pretraining.methods.alice import Alice
from nnunet_transformers.pretraining.methods.qt_ssl import QTSSL
from tests.conftest import write_dataset

SIZE = (16, 16, 16)
SMALL = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare(write_dataset(folder / "raw", cases=4), folder / "prepared", patch_size=SIZE)
    return str(folder / "prepared")


def sums(tensor):
    """Return the sum of the values, and their sum weighted by position, which flips and other crops change."""
    values = tensor.double().flatten()
    return float(values.sum()), float(values @ torch.linspace(0, 1, len(values), dtype=torch.float64))


def draw(samples, epoch=1, index=2):
    samples.epoch = epoch
    return samples[index]


class TestPinned:
    def test_matched(self, prepared):
        sample = draw(MatchedViewData(prepared, SIZE, (2, 2, 2), matcher="identity", seed=3).epoch())
        masks = {side: sample[f"{side}_mask"].flatten().nonzero().flatten().tolist() for side in ("query", "key")}
        assert masks == {"query": [0, 2, 4, 5, 6, 7], "key": [0, 2, 3, 4, 6, 7]}
        assert sums(sample["query_masked"]) == pytest.approx((2064.5248, 1088.3815), rel=1e-5)
        assert sums(sample["query_intact"]) == pytest.approx((2064.5248, 977.9447), rel=1e-5)
        assert sums(sample["key_masked"]) == pytest.approx((1989.1699, 1023.4398), rel=1e-5)
        assert sums(sample["key_intact"]) == pytest.approx((1989.1699, 965.7301), rel=1e-5)

    def test_crops(self, prepared):
        crop, mask = draw(MaskedCropData(prepared, SIZE, (2, 2, 2), seed=3).epoch())
        assert mask.flatten().nonzero().flatten().tolist() == [0, 2, 3, 4, 6, 7]
        assert sums(crop) == pytest.approx((2064.9629, 794.7029), rel=1e-5)

    def test_fused(self, prepared):
        image, classes = draw(FusedCropData(prepared, SIZE, seed=3).epoch())
        assert sums(image) == pytest.approx((1911.6924, 782.1994), rel=1e-5)
        assert sums(classes) == pytest.approx((4638, 2121.6752), rel=1e-5)

    def test_masked(self, prepared):
        first, second = draw(MaskedViewData(prepared, SIZE, seed=3).epoch())
        assert (first[2], second[2]) == (1, 0)
        assert sums(first[0]) == pytest.approx((2497.0273, 1292.0923), rel=1e-5)
        assert sums(second[0]) == pytest.approx((2219.1116, 1068.0684), rel=1e-5)

    def test_overlapping(self, prepared):
        (view, frame), (other, other_frame) = draw(OverlappingViewData(prepared, SIZE, seed=3).epoch())
        assert sums(view) == pytest.approx((1603.3277, 1339.5232), rel=1e-5)
        assert sums(other) == pytest.approx((1019.6856, 983.3647), rel=1e-5)
        assert (*sums(frame), *sums(other_frame)) == pytest.approx((7.0, 3.96, 4.2, 3.0), rel=1e-5)

    def test_images_and_volumes(self, prepared):
        data = TwoViewData(prepared, SIZE[1:], (8, 16, 16), seed=3)
        for samples, expected in (
            (data.images, [(390.9278, 222.3964), (663.2135, 390.7946)]),
            (data.volumes, [(993.5149, 226.8892), (1659.1859, 919.2521)]),
        ):
            for view, values in zip(draw(samples), expected, strict=True):
                assert sums(view) == pytest.approx(values, rel=1e-5)


def test_grid_is_that_of_the_method():
    module = Alice(patch_size=SIZE, network_overrides=SMALL, decoder_heads=4)
    assert mask_grid(module) == tuple(module.encoder.grid) == (4, 4, 4)
    with pytest.raises(ValueError, match="QTSSL has none"):
        mask_grid(QTSSL(patch_size=SIZE, network_overrides=SMALL))
