"""Classification from frozen features: logistic regression and nearest neighbours on shares of the labels.

The protocol of UniMiSS's and MGCA's tables: 1, 10 and 100 % of the training labels, AUC and accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SHARES = (0.01, 0.1, 1.0)
CLASSIFIERS = ("logistic regression", "nearest neighbours")
NEIGHBOURS = 20


@dataclass(frozen=True)
class ProbeScore:
    """Scores of a classifier on a share of the training labels, over repeats.

    Attributes:
        classifier: one of ``CLASSIFIERS``.
        share: share of the training labels.
        cases: mean number of training images.
        auc, accuracy: means over the repeats; the AUC of several classes is the mean of one-versus-rest AUCs.
        auc_std, accuracy_std: standard deviations over the repeats.
    """

    classifier: str
    share: float
    cases: float
    auc: float
    auc_std: float
    accuracy: float
    accuracy_std: float


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
        labels: label of each image.
        is_test: (images,), boolean: images to test on; by default ``repeats`` folds of a stratified cross-validation.
        shares: shares of the training labels; at least one image of each class is drawn.
        repeats: number of draws of a share, or of folds.
        seed: seed of the draws and folds.

    Returns:
        the scores of each classifier on each share, in the order of ``CLASSIFIERS`` and ``shares``.

    Raises:
        ValueError: if there is only one class, a class has fewer images than folds, or the test or the training images
            lack a class.
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
            raise ValueError("training and test images must each have every label; change the column split")
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
