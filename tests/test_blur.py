"""The blur of augmentation, whose kernels have to fit into the image."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension

from nnunet_transformers._blur import fitting_sigma
from nnunet_transformers.pretraining.data.transforms import intensity_transforms, unimiss_intensity_transforms

SYNCHRONISED = [{"synchronize_channels": c, "synchronize_axes": a} for c in (False, True) for a in (False, True)]


def apply(transform, image, seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    return transform(image=image.clone(), segmentation=torch.zeros(1, *image.shape[1:], dtype=torch.int16))["image"]


@pytest.mark.parametrize("options", SYNCHRONISED)
class TestFittingSigma:
    def test_is_the_range_where_its_kernels_fit(self, options):
        limited, plain = (GaussianBlurTransform(s, **options) for s in (fitting_sigma(0.5, 1.0), (0.5, 1.0)))
        image = torch.rand(2, 4, 6, 5)
        for seed in range(10):
            torch.testing.assert_close(apply(limited, image, seed), apply(plain, image, seed), rtol=0, atol=0)

    @pytest.mark.parametrize("size", [(1, 8, 8), (8, 2, 8), (3, 3, 3), (2, 9)])
    def test_fits_into_all_axes(self, options, size):
        image = torch.rand(2, *size)
        blurred = apply(GaussianBlurTransform(fitting_sigma(0.5, 9.0), **options), image, 0)
        assert blurred.shape == image.shape
        assert (blurred.std() < image.std()) or options["synchronize_axes"]  # one voxel limits all axes then


@pytest.mark.parametrize("voxels", range(1, 8))
def test_sigma_is_the_largest_that_fits(voxels):
    line, sigma = torch.rand(1, voxels), fitting_sigma(50.0, 60.0)(voxels)
    blur_dimension(line, sigma, 0)
    with pytest.raises(RuntimeError, match="Padding size should be less"):
        blur_dimension(line, sigma + 0.05, 0)


THIN = [(1, 16, 16), (2, 16, 16), (3, 16, 16), (16, 3, 2)]


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize(
    "build", [intensity_transforms, *(partial(unimiss_intensity_transforms, second) for second in (False, True))]
)
def test_pretraining_of_thin_patches(build, size):
    image = torch.rand(2, *size)
    assert all(apply(build(), image, seed).isfinite().all() for seed in range(40))
