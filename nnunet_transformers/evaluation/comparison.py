"""Comparison of models on the same cases: paired differences, tests, ranks, and the cases that differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .results import MEAN, Evaluation, larger_is_better
from .statistics import (
    DECIMALS,
    Ranking,
    holm,
    interval,
    nan_mean,
    or_null,
    rank,
    resample,
    resampled_means,
    signed_rank,
)
from .tables import Cell, Table

# metrics compared by default, by how their names begin, as far as all models have them
MAIN = ("Dice", "HD95", "NSD")
# the convention of the metrics in nnU-Net's summary.json
OF_NNUNET = {"empty_in_both": "nan"}


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models.

    Attributes:
        metric, label: metric, and the label's name or "mean", the mean over the labels of each case.
        first, second: names of the models.
        cases: number of cases where both are defined, to which all others refer.
        undefined: number of cases where only one of them is, which are left out.
        mean: mean of first - second.
        low, high: its 95 % percentile bootstrap interval.
        p: p-value of Wilcoxon's signed-rank test, two-sided.
        p_holm: the same, adjusted by Holm's method for all pairs and labels of the metric.
    """

    metric: str
    label: str
    first: str
    second: str
    cases: int
    undefined: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Models on the same cases.

    Attributes:
        models: their names.
        cases: names of the cases that all of them have.
        left_out: cases that some of them have.
        metrics: compared metrics.
        labels: names of the labels, then "mean" if there are several.
        values: (models, cases, labels, metrics), the mean over labels included.
        differences: of each metric, pair of models and label.
        rankings: by metric and label, over the cases where all models are defined.
    """

    models: Sequence[str]
    cases: Sequence[str]
    left_out: Sequence[str]
    metrics: Sequence[str]
    labels: Sequence[str]
    values: NDArray
    differences: Sequence[Difference]
    rankings: Mapping[tuple[str, str], Ranking]

    def most_different(self, number: int = 10) -> list[tuple[str, str, str, float]]:
        """Return metric, case, label and the models' range of the cases that differ most, those of each metric first.

        A case counts once per metric, with the label in which it differs most.
        """
        found = []
        for m, metric in enumerate(self.metrics):
            labels = self.labels[:-1] if MEAN in self.labels and len(self.labels) > 1 else self.labels
            values = self.values[..., : len(labels), m]
            # NaN, if a model is undefined, is no difference that can be ranked
            ranges = np.nan_to_num(values.max(0) - values.min(0)).round(DECIMALS)
            largest = ranges.argmax(1)
            spread = ranges[np.arange(len(self.cases)), largest]
            for case in np.argsort(-spread, kind="stable")[:number]:
                if spread[case] > 0:
                    found.append((metric, self.cases[case], labels[largest[case]], float(spread[case])))
        return found

    @property
    def remarks(self) -> list[str]:
        """What was left out of the comparison, in sentences."""
        remarks = []
        if self.left_out:
            remarks.append(f"{len(self.left_out)} cases are not in every model, {self.left_out[0]} first; left out.")
        # of equals the first, so that a label is named rather than the mean over labels
        most = max(self.differences, key=lambda difference: difference.undefined)
        if most.undefined:
            remarks.append(
                f"Up to {most.undefined} cases ({most.label}) have a value in only one model of a pair and are left "
                "out, such as a label that is not there and that one model predicts; evaluate with --empty-in-both "
                "perfect, and without --empty-in-one nan, to count them."
            )
        return remarks

    def as_json(self) -> dict[str, Any]:
        """Return plain types; undefined values are null."""
        rankings = []
        for (metric, label), r in self.rankings.items():
            columns = {"ranks": r.ranks, "low": r.low, "high": r.high, "first": r.first}
            of_models = {name: dict(zip(self.models, c.tolist(), strict=True)) for name, c in columns.items()}
            rankings.append({"metric": metric, "label": label, "tau": or_null(r.tau), **of_models})
        return {
            "cases": [*self.cases],
            "left_out": [*self.left_out],
            "remarks": self.remarks,
            "differences": [{k: or_null(v) for k, v in asdict(d).items()} for d in self.differences],
            "rankings": rankings,
        }

    def tables(self, cases: int = 10) -> dict[str, Table]:
        """Return the tables by name: ``means``, ``differences``, ``ranks`` and ``cases``.

        Args:
            cases: number of cases in the last.
        """
        means = nan_mean(self.values, 1)
        rows: list[list[Cell]] = [
            [metric, label, *means[:, i, m].tolist()]
            for m, metric in enumerate(self.metrics)
            for i, label in enumerate(self.labels)
        ]
        differences: list[list[Cell]] = [
            [d.metric, d.label, f"{d.first} - {d.second}", d.cases, d.mean, d.low, d.high, d.p, d.p_holm, d.undefined]
            for d in self.differences
        ]
        ranks: list[list[Cell]] = [
            [metric, label, model, *map(float, (r.ranks[i], r.low[i], r.high[i], r.first[i], r.tau))]
            for (metric, label), r in self.rankings.items()
            for i, model in enumerate(self.models)
        ]
        different: list[list[Cell]] = []
        for metric, case, label, spread in self.most_different(cases):
            place = self.cases.index(case), self.labels.index(label), self.metrics.index(metric)
            different.append([metric, case, label, *(float(v[place]) for v in self.values), spread])
        return {
            "means": Table(f"Means over {len(self.cases)} cases", ["metric", "label", *self.models], rows),
            "differences": Table(
                "Paired differences",
                ["metric", "label", "models", "cases", "mean", "95 % from", "to", "p", "p (Holm)", "only one defined"],
                differences,
            ),
            "ranks": Table(
                "Ranks by the mean",
                ["metric", "label", "model", "rank", "95 % from", "to", "share of first ranks", "Kendall's tau"],
                ranks,
            ),
            "cases": Table(
                "Cases that differ most", ["metric", "case", "label", *self.models, "largest difference"], different
            ),
        }


def compare(evaluations: Mapping[str, Evaluation], metrics: Sequence[str] = ()) -> Comparison:
    """Compare models on the cases that all of them have.

    Args:
        evaluations: evaluations with the same labels and conventions by the model's name.
        metrics: metrics to compare; by default Dice, HD95 and NSD, as far as all models have them.

    Raises:
        ValueError: if there are fewer than two models, their labels or conventions differ, they have no case in common,
            or a metric is unknown or has no better and worse.
    """
    models = [*evaluations]
    if len(models) < 2:
        raise ValueError(f"a comparison needs two models, there is {', '.join(models) or 'none'}")
    first = evaluations[models[0]]
    for model in models[1:]:
        _check_comparable(models[0], first, model, evaluations[model])
    shared = [m for m in first.metrics if all(m in e.metrics for e in evaluations.values())]
    metrics = list(dict.fromkeys(metrics)) or [m for m in shared if m.startswith(MAIN)]
    cases = [case for case in first.cases if all(case in e.files for e in evaluations.values())]
    if not cases or not metrics:
        raise ValueError(f"{', '.join(models)} have no {'case' if metrics else 'metric'} in common")
    labels = [*first.labels.values()]
    values = np.stack([_values(e, cases, [*first.labels], metrics) for e in evaluations.values()])
    if len(labels) > 1:
        labels.append(MEAN)
        values = np.concatenate([values, nan_mean(values, 2)[:, :, None]], axis=2)
    draws = resample(len(cases))
    differences: list[Difference] = []
    rankings = {}
    for m, metric in enumerate(metrics):
        larger = larger_is_better(metric)
        differences += _differences(metric, models, labels, values[..., m], draws)
        for i, label in enumerate(labels):
            complete = values[:, :, i, m].T.copy()
            complete[np.isnan(complete).any(1)] = np.nan
            resampled = resampled_means(complete, draws)
            resampled = resampled[~np.isnan(resampled).any(1)]
            if len(resampled):
                rankings[metric, label] = rank(nan_mean(complete), resampled, larger)
    everywhere = {case for e in evaluations.values() for case in e.cases}
    return Comparison(models, cases, sorted(everywhere - {*cases}), metrics, labels, values, differences, rankings)


def _values(evaluation: Evaluation, cases: Sequence[str], keys: Sequence[str], metrics: Sequence[str]) -> NDArray:
    """Return (cases, labels, metrics) in the order asked for."""
    rows = [evaluation.cases.index(case) for case in cases]
    columns = [[*evaluation.labels].index(key) for key in keys]
    return np.stack([evaluation.of(metric)[np.ix_(rows, columns)] for metric in metrics], axis=-1)


def _differences(
    metric: str, models: Sequence[str], labels: Sequence[str], values: NDArray, draws: NDArray
) -> list[Difference]:
    """Compare each pair of models in each label; ``values`` are (models, cases, labels)."""
    found: list[dict[str, Any]] = []
    for (i, first), (j, second) in combinations(enumerate(models), 2):
        paired = values[i] - values[j]
        resampled = resampled_means(paired, draws)
        one = np.isnan(values[i]) != np.isnan(values[j])
        for k, label in enumerate(labels):
            low, high = interval(resampled[:, k])
            found.append(
                {
                    "metric": metric,
                    "label": label,
                    "first": first,
                    "second": second,
                    "cases": int((~np.isnan(paired[:, k])).sum()),
                    "undefined": int(one[:, k].sum()),
                    "mean": float(nan_mean(paired[:, k])),
                    "low": low,
                    "high": high,
                    "p": signed_rank(paired[:, k]),
                }
            )
    adjusted = holm([difference["p"] for difference in found])
    return [Difference(**difference, p_holm=p) for difference, p in zip(found, adjusted, strict=True)]


def _check_comparable(one: str, first: Evaluation, other: str, second: Evaluation) -> None:
    if {*first.labels} != {*second.labels}:
        labels = ("{" + ", ".join(e.labels) + "}" for e in (first, second))
        raise ValueError(f"{one} has the labels {next(labels)} and {other} has {next(labels)}")
    conventions = [evaluation.conventions or OF_NNUNET for evaluation in (first, second)]
    shared = [key for key in conventions[0] if key in conventions[1]]
    if different := [key for key in shared if conventions[0][key] != conventions[1][key]]:
        raise ValueError(
            f"{one} and {other} were evaluated with different conventions, {different[0]}: evaluate one again"
        )
