"""Crops and augmentation of images of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_transformers.classification.augmentation import Augmentation
from nnunet_transformers.classification.crops import ImageCrops
from nnunet_transformers.pretraining.data import PreparedImages
from nnunet_transformers.pretraining.data.transforms import fit_canvas, resize
from tests.classification.shapes import write_shapes


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return PreparedImages(write_shapes(tmp_path_factory.mktemp("data"), 2, (20, 24, 12))[0])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder, _ = write_shapes(tmp_path_factory.mktemp("data"), 2, (20, 24, 12), normalization="nonorm")
    return PreparedImages(folder)


class TestTiles:
    @pytest.mark.parametrize(
        "patch_size,number", [((16, 16, 16), 4), ((16, 16), 40), ((20, 24, 12), 1)], ids=["3d", "2d", "whole"]
    )
    def test_cover_an_image(self, images, patch_size, number):
        parts = list(ImageCrops(patch_size, 3).evaluation_crops(images, "case_0"))
        assert [part.shape for part in parts] == [(3, *patch_size)] * number
        whole = images.read("case_0", (0, 0, 0), (20, 24, 12))
        assert max(float(part.max()) for part in parts) == float(whole.max())

    def test_centre(self, images):
        (part,) = ImageCrops((16, 16, 8), tiles=False).evaluation_crops(images, "case_0")
        assert torch.equal(part, images.read("case_0", (2, 4, 2), (16, 16, 8)))
        # in 2D of each slice, as tiles and canvas have it
        for number, part in enumerate(ImageCrops((16, 8), tiles=False).evaluation_crops(images, "case_0")):
            assert torch.equal(part, images.read("case_0", (number, 4, 2), (16, 8)))
        assert number == 19


class TestCanvas:
    def test_stretched(self, images):
        crops = ImageCrops((8, 8, 8), canvas=(8, 8, 8), keep_aspect=False)
        (part,) = crops.evaluation_crops(images, "case_0")
        whole = images.read("case_0", (0, 0, 0), (20, 24, 12))
        assert torch.equal(part, resize(whole, (8, 8, 8)))
        assert torch.equal(part, crops.random_crop(images, "case_0", np.random.default_rng(0)))

    def test_whole_images_in_evaluation_only(self, images):
        crops = ImageCrops((8, 8, 8), keep_aspect=False, evaluation_canvas=(8, 8, 8))
        (part,) = crops.evaluation_crops(images, "case_0")
        assert torch.equal(part, resize(images.read("case_0", (0, 0, 0), (20, 24, 12)), (8, 8, 8)))
        own = images.crop((8, 8, 8), np.random.default_rng(0), "case_0")
        assert torch.equal(crops.random_crop(images, "case_0", np.random.default_rng(0)), own)
        with pytest.raises(ValueError, match=r"canvas \(8, 8, 4\) must have the axes of the patch"):
            replace(crops, evaluation_canvas=(8, 8, 4))

    def test_window_in_standard_deviations(self, raw):
        (part,) = ImageCrops((20, 24, 12), intensity_range=(0, 100)).evaluation_crops(raw, "case_0")
        crops = ImageCrops((20, 24, 12), intensity_range=(0, 100), intensity_mean_std=(20, 40))
        (standard,) = crops.evaluation_crops(raw, "case_0")
        torch.testing.assert_close(standard, (100 * part - 20) / 40)
        with pytest.raises(ValueError, match="needs intensity_range"):
            replace(crops, intensity_range=None)

    def test_fitted_and_cropped(self, images):
        crops = ImageCrops((16, 16), canvas=(20, 20))
        parts = list(crops.evaluation_crops(images, "case_0"))
        assert len(parts) == 20 * 4
        slice_0 = images.read("case_0", (0, 0, 0), (24, 12))
        whole = fit_canvas(slice_0, (20, 20), float(slice_0.min()))
        assert (whole[:, :, 0] == slice_0.min()).all()
        assert torch.equal(parts[3], whole[:, 4:, 4:])
        (centre, *others) = ImageCrops((16, 16), canvas=(20, 20), tiles=False).evaluation_crops(images, "case_0")
        assert len(others) == 19
        assert torch.equal(centre, whole[:, 2:18, 2:18])
        found = [crops.random_crop(images, "case_0", np.random.default_rng(s)) for s in (0, 0, 1)]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

    def test_resize_keeps_a_ramp_and_the_mean(self):
        ramp = torch.linspace(0, 1, 32)[None, :, None, None].expand(2, 32, 16, 24)
        for axis in range(3):
            turned = ramp.transpose(1, 1 + axis).contiguous()
            small = resize(turned, [n // 2 for n in turned.shape[1:]]).movedim(1 + axis, 1)
            expected = torch.linspace(0, 1, 32).unflatten(0, (16, 2)).mean(1)
            torch.testing.assert_close(small[0, 1:-1, 0, 0], expected[1:-1], atol=1e-3, rtol=0)


class TestIntensities:
    def test_range(self, raw):
        crops = ImageCrops((16, 16, 8), intensity_range=(0.5, 1.5))
        crops.check(raw.index)
        part = next(crops.evaluation_crops(raw, "case_0"))
        start = (0, 0, 0)
        assert torch.equal(part, (raw.read("case_0", start, (16, 16, 8)) - 0.5).clamp(0, 1))
        assert (float(part.min()), float(part.max())) == (0, 1)

    def test_mistakes(self, images):
        for arguments, message in (
            ({"canvas": (8, 16)}, r"canvas \(8, 16\) must have the axes of the patch \(16, 16\) and be no smaller"),
            ({"canvas": (16, 16, 16)}, "must have the axes"),
            ({"intensity_range": (1.0, 1.0)}, "two increasing numbers"),
        ):
            with pytest.raises(ValueError, match=message):
                ImageCrops((16, 16), **arguments)
        with pytest.raises(ValueError, match=r"prepared with ZScoreNormalization: prepare them with .*nonorm"):
            ImageCrops((16, 16), intensity_range=(0, 1)).check(images.index)
        with pytest.raises(ValueError, match="have 2 channels, the network takes 3"):
            ImageCrops((16, 16), 3).check(replace(images.index, channels=("a", "b")))


class TestAugmentation:
    @pytest.mark.parametrize("size", [(16, 16), (8, 16, 16)], ids=["2d", "3d"])
    def test_changes(self, size):
        crop = torch.randn(2, *size)
        nothing = Augmentation(intensity=False)
        assert torch.equal(nothing.apply(crop, nothing.transform(size)), crop)
        flips = Augmentation(intensity=False, flips=(0,))
        found = [flips.apply(crop, flips.transform(size)) for _ in range(20)]
        assert all(torch.equal(f, crop) or torch.equal(f, crop.flip(1)) for f in found)
        assert {torch.equal(f, crop) for f in found} == {True, False}
        strong = Augmentation(rotation=30, zoom=(0.5, 2.0))
        for _ in range(20):
            changed = strong.apply(crop, strong.transform(size))
            assert changed.shape == crop.shape
            assert changed.isfinite().all()

    @pytest.mark.parametrize("size", [(32, 32), (16, 32, 32)], ids=["2d", "3d"])
    def test_elastic_deformation_and_low_resolution(self, size):
        ramp = torch.linspace(0, 1, 32).expand(1, *size).contiguous()
        elastic = Augmentation(intensity=False, elastic=4.0)
        found = [elastic.apply(ramp.clone(), elastic.transform(size)) - ramp for _ in range(60)]
        # a row of the ramp rises by 1 / 31 a voxel; the field is smooth and of at most four voxels
        moved = [31 * float(f.abs().max()) for f in found if f.abs().max() > 1e-4]
        assert 4 <= len(moved) <= 22
        assert max(moved) < 5
        coarse = Augmentation(intensity=False, low_resolution=True)
        changed = [coarse.apply(ramp.clone(), coarse.transform(size)) for _ in range(100)]
        assert 3 <= sum(not torch.equal(c, ramp) for c in changed) <= 25

    def test_zoom_above_one_enlarges(self):
        crop = torch.zeros(1, 32, 32)
        crop[:, 12:20, 12:20] = 1
        zoom = Augmentation(intensity=False, zoom=(2.0, 2.0))
        areas = {round(float(zoom.apply(crop, zoom.transform((32, 32))).sum())) for _ in range(40)}
        assert areas == {64, 256}

    def test_mistakes(self):
        with pytest.raises(ValueError, match="zoom must be two numbers above 0"):
            Augmentation(zoom=(2.0, 1.0))
        # -1 would be the axis of the channels
        for axis in (2, -1):
            with pytest.raises(ValueError, match="must name axes of the patch, 0 to 1"):
                Augmentation(flips=(axis,)).transform((8, 8))
