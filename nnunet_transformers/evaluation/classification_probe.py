"""Classification from frozen features: logistic regression and nearest neighbours on shares of the labels.

The protocol of UniMiSS's and MGCA's tables: 1, 10 and 100 % of the training labels, AUC and accuracy.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..pretraining.cases import strip_ending

SHARES = (0.01, 0.1, 1.0)
CLASSIFIERS = ("logistic regression", "nearest neighbours")
NEIGHBOURS = 20


@dataclass(frozen=True)
class LabelledImages:
    """What a table says of images.

    Attributes:
        names: of the images.
        labels: of each.
        is_test: of each, or None where the table has no ``split``.
        unknown: names in the table that are no image.
    """

    names: list[str]
    labels: list[str]
    is_test: NDArray | None
    unknown: list[str]


@dataclass(frozen=True)
class ProbeScore:
    """Scores of a classifier on a share of the training labels, over repeats.

    Attributes:
        classifier: one of ``CLASSIFIERS``.
        share: of the training labels.
        cases: that it was trained on, on average.
        auc, accuracy: mean over the repeats; the AUC of several classes is the mean of each against the rest.
        auc_std, accuracy_std: their standard deviation.
    """

    classifier: str
    share: float
    cases: float
    auc: float
    auc_std: float
    accuracy: float
    accuracy_std: float


def read_labels(table: Path, known: Collection[str]) -> LabelledImages:
    """Read a CSV file with columns ``image``, ``label`` and, if there is a fixed one, ``split`` (train or test).

    Args:
        table: the file; an image is named as in the prepared folder, or by its file: with its folder and ending, or
            without either where that is clear.
        known: names of the prepared images.

    Raises:
        ValueError: if a column is missing, an image is there twice or has no label, a split has another name, or no
            image is known.
    """
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or []
    missing = [column for column in ("image", "label") if column not in columns]
    if missing:
        raise ValueError(f"{table} has no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    bare = [number for number, row in enumerate(rows, 2) if not (row["image"] and row["label"])]
    if bare:
        raise ValueError(f"{table} has no image or no label in line {', '.join(map(str, bare[:3]))}")
    known = set(known)
    names = [_known_name(row["image"], known) for row in rows]
    twice = [name for name, number in Counter(names).items() if name and number > 1]
    if twice:
        raise ValueError(f"{table} names {', '.join(twice[:3])} more than once")
    kept = [(name, row) for name, row in zip(names, rows, strict=True) if name]
    if not kept:
        raise ValueError(
            f"none of the {len(rows)} images in {table} is in the prepared folder: {rows[0]['image'] if rows else ''} "
            f"is not, which has {min(known, default='none')}"
        )
    splits = [row.get("split") for _, row in kept]
    if "split" in columns and set(splits) != {"train", "test"}:
        found = ", ".join(sorted(map(repr, set(splits))))
        raise ValueError(f"column split of {table} must hold train and test, and both, got {found}")
    return LabelledImages(
        [name for name, _ in kept],
        [row["label"] for _, row in kept],
        np.array(splits) == "test" if "split" in columns else None,
        [row["image"] for name, row in zip(names, rows, strict=True) if not name],
    )


def _known_name(file: str, known: Collection[str]) -> str | None:
    """What ``prepare`` calls an image: by its path, by the file alone, and without nnU-Net's channel."""
    path = strip_ending(file.replace("\\", "/"))
    short = path.rpartition("/")[2]
    candidates = (file, path.replace("/", "__"), short, short.removesuffix("_0000"))
    return next((name for name in candidates if name in known), None)


def probe_classification(
    features: NDArray,
    labels: Sequence[str],
    is_test: NDArray | None = None,
    shares: Sequence[float] = SHARES,
    repeats: int = 5,
    seed: int = 0,
) -> list[ProbeScore]:
    """Train both classifiers on each share of the training labels and test them.

    Args:
        features: (images, channels).
        labels: of each image.
        is_test: boolean, the images to test on; without it, ``repeats`` folds of a stratified cross-validation.
        shares: of the training labels, at least one of each class.
        repeats: draws of a share, or folds.
        seed: of the draws and folds.

    Raises:
        ValueError: if there is one class only, or one with fewer images than folds.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all images have the label {classes[0]!r}; a classifier needs two")
    splits = list(_splits(targets, is_test, repeats, seed))
    scores = []
    for classifier in CLASSIFIERS:
        for share in shares:
            results = []
            for number, (training, test) in enumerate(splits):
                rng = np.random.default_rng((seed, number))
                drawn = _draw(training, targets, share, rng)
                model = _model(classifier, len(drawn)).fit(features[drawn], targets[drawn])
                probabilities = model.predict_proba(features[test])
                accuracy = accuracy_score(targets[test], probabilities.argmax(1))
                results.append((len(drawn), _auc(targets[test], probabilities), accuracy))
            cases, auc, accuracy = np.mean(results, axis=0).tolist()
            _, auc_std, accuracy_std = np.std(results, axis=0).tolist()
            scores.append(ProbeScore(classifier, share, cases, auc, auc_std, accuracy, accuracy_std))
    return scores


def _splits(targets: NDArray, is_test: NDArray | None, repeats: int, seed: int) -> Iterator[tuple[NDArray, NDArray]]:
    if is_test is not None:
        training, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
        if len(np.unique(targets[training])) < targets.max() + 1 or len(np.unique(targets[test])) < targets.max() + 1:
            raise ValueError("training and test images must hold every label")
        for _ in range(repeats):
            yield training, test
        return
    fewest = np.bincount(targets).min()
    if fewest < repeats:
        raise ValueError(f"the rarest label has {fewest} images, {repeats} folds need as many; add a column split")
    folds = StratifiedKFold(repeats, shuffle=True, random_state=seed)
    yield from folds.split(targets, targets)


def _draw(training: NDArray, targets: NDArray, share: float, rng: np.random.Generator) -> NDArray:
    drawn = []
    for target in np.unique(targets[training]):
        own = training[targets[training] == target]
        drawn.append(rng.choice(own, max(1, round(share * len(own))), replace=False))
    return np.concatenate(drawn)


def _model(classifier: str, cases: int) -> ClassifierMixin:
    if classifier == CLASSIFIERS[0]:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, cases), weights="distance", metric="cosine")
    return make_pipeline(StandardScaler(), neighbours)


def _auc(targets: NDArray, probabilities: NDArray) -> float:
    if probabilities.shape[1] == 2:
        return roc_auc_score(targets, probabilities[:, 1])
    return roc_auc_score(targets, probabilities, multi_class="ovr", labels=range(probabilities.shape[1]))
