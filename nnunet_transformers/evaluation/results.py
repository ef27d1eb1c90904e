"""Results of an evaluation and their file, which holds what nnU-Net's summary.json holds, in its places."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._atomic import write_text
from .._reading import read_json, reading
from .statistics import Summary, nan_mean, resample, resampled_means, summarise
from .tables import Cell, Table

FORMAT = 1
MEAN = "mean"
# metrics of which less is better, and those of which neither is; of all others more is
DISTANCES = ("HD95", "ASSD", "MASD", "lesion FP", "lesion FN", "FP", "FN")
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref", "lesion TP", "lesion FP", "lesion FN")
NEITHER = ("VD", "RVD", "TN", "n_pred", "n_ref")


def larger_is_better(metric: str) -> bool:
    """Return whether more of a metric is better.

    Raises:
        ValueError: if neither is, as for volume differences.
    """
    if metric in NEITHER:
        raise ValueError(f"neither more nor less of {metric} is better; models are compared by other metrics")
    return metric not in DISTANCES


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all cases.

    Attributes:
        labels: names of labels and regions by their key in the file, ``1`` or ``(1, 2)``.
        metrics: names of the metrics.
        files: paths of predicted file and reference file by the case's name.
        values: (cases, labels, metrics), float64, NaN where undefined.
        conventions: as ``Conventions.as_json`` gives them; empty for nnU-Net's own summary.json.
        without_prediction: cases with a label file but no prediction.
        elsewhere: of cases whose two files lie more than a voxel apart by their headers, how many mm; nnU-Net compares
            voxel by voxel all the same.
    """

    labels: Mapping[str, str]
    metrics: Sequence[str]
    files: Mapping[str, tuple[str, str]]
    values: NDArray
    conventions: Mapping[str, Any] = field(default_factory=dict)
    without_prediction: Sequence[str] = ()
    elsewhere: Mapping[str, float] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """Names of the cases."""
        return [*self.files]

    def of(self, metric: str) -> NDArray:
        """Return (cases, labels) of a metric.

        Raises:
            ValueError: if it was not computed.
        """
        if metric not in self.metrics:
            raise ValueError(f"there is no metric {metric!r}; there are {', '.join(self.metrics)}")
        return self.values[:, :, [*self.metrics].index(metric)]

    def agrees_with(self, other: Evaluation) -> bool:
        """Return whether the cases and labels that both have, have the same Dice wherever both define it."""
        cases = [case for case in self.cases if case in other.files]
        labels = [key for key in self.labels if key in other.labels]
        ours, theirs = (
            e.of("Dice")[np.ix_([e.cases.index(c) for c in cases], [[*e.labels].index(key) for key in labels])]
            for e in (self, other)
        )
        return bool(np.all(np.isclose(ours, theirs) | np.isnan(ours) | np.isnan(theirs)))

    def summaries(self) -> dict[str, dict[str, Summary]]:
        """Summarise every metric by label name, and then for the mean over labels.

        The mean over labels is nnU-Net's ``foreground_mean``, the mean of the labels' means; its deviation and median
        are those of each case's mean over its labels.
        """
        draws = resample(len(self.cases))
        resampled = resampled_means(self.values, draws)
        means = nan_mean(self.values)
        result: dict[str, dict[str, Summary]] = {}
        for i, name in enumerate(self.labels.values()):
            columns = zip(self.metrics, self.values[:, i].T, resampled[:, i].T, strict=True)
            result[name] = {metric: summarise(values, drawn) for metric, values, drawn in columns}
        if len(self.labels) > 1:
            of_cases, drawn = nan_mean(self.values, 1), nan_mean(resampled, 1)
            result[MEAN] = {
                metric: Summary(**{**asdict(summarise(of_cases[:, i], drawn[:, i])), "mean": float(nan_mean(means)[i])})
                for i, metric in enumerate(self.metrics)
            }
        return result

    def table(self) -> Table:
        """Return a row per label and metric: cases, mean, deviation, median and the bounds of the mean's interval."""
        rows: list[list[Cell]] = [
            [label, metric, s.cases, s.mean, s.std, s.median, s.low, s.high]
            for label, summaries in self.summaries().items()
            for metric, s in summaries.items()
        ]
        headings = ["label", "metric", "cases", "mean", "std", "median", "95 % from", "to"]
        return Table(f"Metrics of {len(self.cases)} cases", headings, rows)

    def as_json(self) -> dict[str, Any]:
        """Return plain types; undefined values are NaN, as nnU-Net writes and reads them."""
        means = nan_mean(self.values)
        per_case = [
            {
                "metrics": {
                    key: {metric: _plain(metric, value) for metric, value in zip(self.metrics, row, strict=True)}
                    for key, row in zip(self.labels, rows, strict=True)
                },
                "prediction_file": files[0],
                "reference_file": files[1],
            }
            for files, rows in zip(self.files.values(), self.values.tolist(), strict=True)
        ]
        summaries = {
            name: {metric: asdict(summary) for metric, summary in of_label.items()}
            for name, of_label in self.summaries().items()
        }
        return {
            # NaN if a label is undefined in every case, as in nnU-Net
            "foreground_mean": dict(zip(self.metrics, means.mean(0).tolist(), strict=True)),
            "mean": {
                key: dict(zip(self.metrics, row, strict=True))
                for key, row in zip(self.labels, means.tolist(), strict=True)
            },
            "metric_per_case": per_case,
            "nnunet_transformers": {
                "format": FORMAT,
                "labels": dict(self.labels),
                "cases": self.cases,
                "conventions": dict(self.conventions),
                "statistics": summaries,
                "cases_without_prediction": [*self.without_prediction],
                "cases_elsewhere": dict(self.elsewhere),
            },
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: if it cannot be written; ``path`` is then unchanged.
        """
        # not write_json, as JSON proper has no NaN
        write_text(json.dumps(self.as_json(), indent=2) + "\n", path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read a file of ``save``, or nnU-Net's own summary.json, whose labels have no names and cases their files'.

        Raises:
            OSError: if it cannot be opened.
            ValueError: if it is damaged, or of a later format.
        """
        content = read_json(path, "an evaluation", "evaluate again")
        with reading(path, "an evaluation", "evaluate again"):
            own = content.get("nnunet_transformers", {"format": FORMAT})
            if own["format"] > FORMAT:
                raise ValueError(f"it has format {own['format']}, and this version reads {FORMAT}; update it")
            entries = content["metric_per_case"]
            keys = [key for key in content["mean"] if key != "0"]
            metrics = [*content["mean"][keys[0]]]
            values = [[[_number(e["metrics"][k][m]) for m in metrics] for k in keys] for e in entries]
            files = [(str(e["prediction_file"]), str(e["reference_file"])) for e in entries]
            cases = own.get("cases") or [_case(PureWindowsPath(predicted)) for predicted, _ in files]
            if len(set(map(str, cases))) != len(files):
                raise ValueError("names of cases are missing or not unique")
            return cls(
                labels={key: str(own["labels"][key]) if "labels" in own else key for key in keys},
                metrics=metrics,
                files=dict(zip(map(str, cases), files, strict=True)),
                values=np.array(values, float).reshape(len(files), len(keys), len(metrics)),
                conventions=dict(own.get("conventions", {})),
                without_prediction=[str(case) for case in own.get("cases_without_prediction", ())],
                elsewhere={str(case): float(distance) for case, distance in own.get("cases_elsewhere", {}).items()},
            )


def _case(prediction: PurePath) -> str:
    """Return the name of a case, which may have dots, by its file; ``.nii.gz`` is one ending."""
    return (prediction.with_suffix("") if prediction.suffix == ".gz" else prediction).stem


def _plain(metric: str, value: float) -> float | int:
    return int(value) if metric in COUNTS and math.isfinite(value) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
