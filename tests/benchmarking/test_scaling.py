"""Fitted exponents, and their measurements at a small size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnunet_transformers.benchmarking.measure import Settings
from nnunet_transformers.benchmarking.scaling import fit_power_law, in_child, prediction, training_step

SETTINGS = Settings((32, 32, 32), num_classes=2, threads=1, seconds=0, volume=(32, 32, 48))


class TestPowerLaw:
    def test_exact(self):
        law = fit_power_law([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)])
        assert law.exponent == pytest.approx(1.5)
        assert law.factor == pytest.approx(3)
        assert law.standard_error < 1e-6

    def test_noise_is_in_the_error(self):
        rng = np.random.default_rng(0)
        x = np.geomspace(1, 100, 50)
        law = fit_power_law(x, 2 * x**0.8 * np.exp(rng.normal(0, 0.1, 50)))
        # of a slope: the noise over the spread of the logarithms and the root of their number
        assert law.standard_error == pytest.approx(0.1 / (np.log(x).std() * 50**0.5), rel=0.3)
        assert abs(law.exponent - 0.8) < 3 * law.standard_error

    @pytest.mark.parametrize("x,y,message", [([1, 2], [1, 2], "three points"), ([1, 2, 0], [1, 2, 3], "positive")])
    def test_not_a_power_law(self, x, y, message):
        with pytest.raises(ValueError, match=message):
            fit_power_law(x, y)


def test_larger_batch_takes_more_memory():
    one, four = (in_child(training_step, "mit_7", replace(SETTINGS, batch_size=n)) for n in (1, 8))
    assert 0 < one["seconds"] < four["seconds"]
    assert 0 < one["bytes"] < four["bytes"]


def test_prediction_of_images():
    one, four = (in_child(prediction, "mit_7", SETTINGS, images) for images in (1, 6))
    assert 0 < one["seconds"] < four["seconds"]
