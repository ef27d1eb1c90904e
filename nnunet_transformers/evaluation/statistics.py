"""Statistics over cases: means with bootstrap intervals, paired tests, and ranks with their stability.

A resample draws cases with replacement. One set of resamples serves all labels, metrics and models, so that what
belongs to a case stays together; a resampled mean is then a matrix product.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, wilcoxon

RESAMPLES = 2000
LEVEL = 0.95
# distances that are equal differ by rounding where they were measured at other places; so do means of other order
DECIMALS = 12


@dataclass(frozen=True)
class Summary:
    """A metric over cases.

    Attributes:
        cases: number of cases where it is defined, to which all others refer.
        mean, std, median: std with n - 1; NaN where undefined.
        low, high: 95 % percentile bootstrap interval of the mean (Efron and Tibshirani, 1993, chapter 13).
    """

    cases: int
    mean: float
    std: float
    median: float
    low: float
    high: float


def resample(cases: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray:
    """Draw cases with replacement.

    Returns:
        (resamples, cases), float64: how often each case is drawn.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(cases, np.full(cases, 1 / cases), resamples).astype(float)


def resampled_means(values: NDArray, draws: NDArray) -> NDArray:
    """Compute the means of resamples, without NaN.

    Args:
        values: (cases, ...), NaN where undefined.
        draws: (resamples, cases) of ``resample``.

    Returns:
        (resamples, ...); NaN for a resample in which nothing is defined.
    """
    defined = ~np.isnan(values)
    sums = np.tensordot(draws, np.where(defined, values, 0), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / np.tensordot(draws, defined.astype(float), 1)


def interval(resampled: NDArray) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled values, without NaN; NaN if there are none."""
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return math.nan, math.nan
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def or_null(value: Any) -> Any:
    """Return None, JSON's null, for NaN, which JSON does not have; all else as it is."""
    return None if isinstance(value, float) and math.isnan(value) else value


def nan_mean(values: NDArray, axis: int = 0) -> NDArray:
    """Compute the mean over an axis without NaN; NaN where there is nothing else, without a warning."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis) / defined.sum(axis)


def summarise(values: NDArray, resampled: NDArray) -> Summary:
    """Summarise a metric.

    Args:
        values: (cases,), NaN where undefined.
        resampled: (resamples,), their resampled means.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return Summary(0, *[math.nan] * 5)
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Summary(len(values), float(values.mean()), std, float(np.median(values)), *interval(resampled))


def signed_rank(differences: NDArray) -> float:
    """Compute the p-value of Wilcoxon's signed-rank test, two-sided; zeros are left out (Wilcoxon, 1945).

    Args:
        differences: (cases,), NaN where undefined; zero and equal to each other within ``DECIMALS``.

    Returns:
        the p-value; 1 if no difference is left.
    """
    differences = differences[~np.isnan(differences)].round(DECIMALS)
    if not differences.any():
        return 1.0
    with warnings.catch_warnings():
        # of samples too small for the normal approximation that ties need
        warnings.simplefilter("ignore")
        return float(wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm, Scandinavian Journal of Statistics 1979).

    Examples:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    adjusted = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1)
    return result.tolist()


@dataclass(frozen=True)
class Ranking:
    """Ranks of models by their mean, and how they hold over resamples (Wiesenfarth et al., Scientific Reports 2021).

    Attributes:
        ranks: (models,): 1 is the best; equal means share the mean of their ranks.
        low, high: (models,): bounds of the 95 % interval of the rank over resamples.
        first: (models,): share of resamples in which the model is the best, alone or with others.
        tau: mean of Kendall's tau between the ranking and those of the resamples; NaN if all are equal.
    """

    ranks: NDArray
    low: NDArray
    high: NDArray
    first: NDArray
    tau: float


def rank(means: NDArray, resampled: NDArray, larger_is_better: bool) -> Ranking:
    """Rank models by their mean over cases ("aggregate, then rank").

    Args:
        means: (models,).
        resampled: (resamples, models), without NaN.
        larger_is_better: false for distances.
    """
    sign = -1 if larger_is_better else 1
    # equal models get equal ranks
    ranks, resampled_ranks = (rankdata(sign * m.round(DECIMALS), axis=-1) for m in (means, resampled))
    low, high = np.quantile(resampled_ranks, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    first = (resampled_ranks == resampled_ranks.min(1, keepdims=True)).mean(0)
    different, number = np.unique(resampled_ranks, axis=0, return_counts=True)
    taus = np.array([kendalltau(ranks, other).statistic for other in different])
    known = ~np.isnan(taus)
    tau = float(np.average(taus[known], weights=number[known])) if known.any() else math.nan
    return Ranking(ranks, low, high, first, tau)
