"""Statistics over cases against formulas written out, SciPy, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_transformers.evaluation import statistics
from nnunet_transformers.evaluation.statistics import (
    holm,
    interval,
    nan_mean,
    rank,
    resample,
    resampled_means,
    signed_rank,
    summarise,
)

NAN = math.nan


def test_resampled_means_are_those_of_drawn_cases():
    values = np.random.default_rng(0).normal(size=(6, 2, 3))
    values[1, 0, 2] = values[4] = NAN
    draws = resample(6, 20)
    assert (draws.sum(1) == 6).all() and len(np.unique(draws, axis=0)) > 15
    found = resampled_means(values, draws)
    for row, times in zip(found, draws.astype(int), strict=True):
        drawn = np.repeat(np.arange(6), times)
        np.testing.assert_allclose(row, np.nanmean(values[drawn], axis=0))
    assert np.isnan(resampled_means(np.full((3, 1), NAN), resample(3, 4))).all()


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(1).gamma(2, size=40)
    found = summarise(values, resampled_means(values, resample(40)))
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", random_state=0)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    assert found.low < found.mean < found.high
    assert (found.mean, found.std, found.median) == pytest.approx(
        (values.mean(), values.std(ddof=1), np.median(values))
    )


def test_interval_covers_the_mean():
    rng, covered = np.random.default_rng(2), 0
    for number in range(200):
        values = rng.normal(1, 1, 30)
        low, high = interval(resampled_means(values, resample(30, 500, number)))
        covered += low <= 1 <= high
    assert 0.88 < covered / 200 < 0.98


def test_undefined_cases_are_left_out():
    values = np.array([0.5, NAN, 0.7])
    found = summarise(values, resampled_means(values, resample(3)))
    assert (found.cases, found.mean, found.median) == (2, pytest.approx(0.6), pytest.approx(0.6))
    nothing = summarise(np.array([NAN]), np.array([NAN]))
    assert nothing.cases == 0 and math.isnan(nothing.mean) and math.isnan(nothing.low)
    one = summarise(np.array([0.5]), np.array([0.5, 0.5]))
    assert (one.mean, one.low, one.high) == (0.5, 0.5, 0.5) and math.isnan(one.std)
    assert nan_mean(np.array([[1, NAN], [3, NAN]])).tolist() == pytest.approx([2, NAN], nan_ok=True)


def test_holm_by_hand():
    # Holm 1979: 0.005 * 4, then the largest so far of 0.01 * 3, 0.03 * 2, 0.04 * 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def test_signed_rank():
    # five positive differences: 2 of the 2^5 signs are as extreme
    assert signed_rank(np.array([1, 2, 3, 4, 5, NAN])) == pytest.approx(2 / 32)
    assert signed_rank(np.zeros(4)) == signed_rank(np.array([NAN])) == 1


def test_signed_rank_of_distances_that_are_equal_but_for_rounding():
    """In voxels of 0.7 mm: differences of no voxel are zeros, and those of one are ties, wherever they are."""
    differences = np.array([2.1 - 3 * 0.7, 1.4 - 0.7, 2.1 - 1.4, 4.9 - 4.2, 0.7 - 1.4, 7.7 - 7.0, 9.1 - 7.0])
    assert signed_rank(differences) == signed_rank(np.array([0, 1, 1, 1, -1, 1, 3]))


def test_ranks():
    # the first model is the best in three of four cases, and so bad in the other that its mean is lower
    values = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.9, 0.8, 0.1], [0.4, 0.8, 0.1]])
    resampled = resampled_means(values, resample(4, 4000))
    found = rank(values.mean(0), resampled, larger_is_better=True)
    assert found.ranks.tolist() == [2, 1, 3]
    # it is the best where the last case is not drawn
    assert found.first.tolist() == pytest.approx([0.75**4, 1 - 0.75**4, 0], abs=0.03)
    assert (found.low.tolist(), found.high.tolist()) == ([1, 1, 3], [2, 2, 3])
    assert rank(values.mean(0), resampled, larger_is_better=False).ranks.tolist() == [2, 3, 1]


def test_equal_but_for_rounding():
    assert rank(np.array([0.1 + 0.2, 0.3]), np.array([[0.3, 0.1 + 0.2]]), True).ranks.tolist() == [1.5, 1.5]


def test_ranks_of_clear_winners_are_stable():
    values = np.random.default_rng(0).normal([3, 2, 1], 0.1, (20, 3))
    found = rank(values.mean(0), resampled_means(values, resample(20)), True)
    assert found.tau == pytest.approx(1) and found.first.tolist() == [1, 0, 0]
    equal = rank(np.ones(2), np.ones((5, 2)), True)
    assert equal.ranks.tolist() == [1.5, 1.5] and math.isnan(equal.tau) and equal.first.tolist() == [1, 1]


def test_tau_is_the_mean_over_resamples():
    rng = np.random.default_rng(3)
    values = rng.normal([1.1, 1, 0.9], 0.5, (15, 3))
    resampled = resampled_means(values, resample(15, 200))
    found = rank(values.mean(0), resampled, True)
    taus = [stats.kendalltau(found.ranks, stats.rankdata(-row)).statistic for row in resampled]
    assert found.tau == pytest.approx(np.mean(taus))
    assert statistics.LEVEL == 0.95
