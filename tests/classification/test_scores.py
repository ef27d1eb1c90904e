"""AUC and accuracy against scikit-learn, and bootstrap intervals against a direct computation and their coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, recall_score, roc_auc_score

from nnunet_transformers.classification.scores import accuracy, as_text, auc, score_with_intervals


def binary(images, shift, seed=0):
    """Probabilities whose AUC is known: of two normal distributions ``shift`` apart."""
    rng = np.random.default_rng(seed)
    target = np.arange(images) % 2
    p = 1 / (1 + np.exp(-rng.normal(target * shift)))
    return np.stack([1 - p, p], 1), np.stack([1 - target, target], 1).astype(np.float32)


def several(images=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    target = np.arange(images) % classes
    p = rng.dirichlet(np.ones(classes), images) + np.eye(classes)[target] * 0.5
    return p / p.sum(1, keepdims=True), np.eye(classes, dtype=np.float32)[target]


class TestValues:
    def test_two_classes(self):
        p, t = binary(50, 1.0)
        assert auc(p, t) == pytest.approx(roc_auc_score(t[:, 1], p[:, 1]))
        assert accuracy(p, t, False) == pytest.approx(accuracy_score(t[:, 1], p[:, 1] > 0.5))

    def test_scores_of_the_second_class(self):
        """UniMiSS's release reports them beside AUC; in a resample images occur several times."""
        p, t = binary(50, 1.0)
        p[:12] = p[0]  # ties
        scores = score_with_intervals(p, t, ["no", "yes"], resamples=30, seed=3)
        rng = np.random.default_rng(3)
        drawn = np.concatenate([rng.choice(np.flatnonzero(c), (30, int(c.sum()))) for c in t.T], axis=1)
        expected = {
            "average precision": lambda y, s: average_precision_score(y, s),
            "sensitivity": lambda y, s: recall_score(y, s > 0.5),
            "specificity": lambda y, s: recall_score(y, s > 0.5, pos_label=0),
        }
        for name, score in expected.items():
            values = [score(t[d, 1], p[d, 1]) for d in drawn]
            assert scores[name].value == pytest.approx(score(t[:, 1], p[:, 1]))
            assert (scores[name].low, scores[name].high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))))
        assert "sensitivity" not in score_with_intervals(*several(), ["a", "b", "c"], resamples=2)

    def test_several_classes(self):
        p, t = several()
        assert auc(p, t) == pytest.approx(roc_auc_score(t.argmax(1), p, multi_class="ovr"))

    def test_several_labels_some_unknown(self):
        rng = np.random.default_rng(0)
        p, t = rng.uniform(size=(40, 3)), rng.integers(0, 2, (40, 3)).astype(np.float32)
        t[:10, 0], t[:, 2] = np.nan, 1
        areas = [roc_auc_score(t[10:, 0], p[10:, 0]), roc_auc_score(t[:, 1], p[:, 1])]
        assert auc(p, t) == pytest.approx(np.mean(areas))
        right = [((p[:, i] > 0.5) == t[:, i])[~np.isnan(t[:, i])].mean() for i in range(3)]
        assert accuracy(p, t, True) == pytest.approx(np.mean(right))

    def test_undefined(self):
        p, t = binary(10, 1.0)
        assert np.isnan(auc(p[1::2], t[1::2]))
        scores = score_with_intervals(p[1::2], t[1::2], ["a", "b"], resamples=10)
        assert scores["AUC"].value is None
        assert as_text(scores)["AUC"] == "not defined"


class TestIntervals:
    def test_against_a_direct_computation(self):
        p, t = several(30)
        p[:10] = p[0]  # ties
        found = score_with_intervals(p, t, ["a", "b", "c"], resamples=50, seed=3)
        rng = np.random.default_rng(3)
        drawn = np.concatenate([rng.choice(np.flatnonzero(c), (50, int(c.sum()))) for c in t.T], axis=1)
        direct = [(roc_auc_score(t[d].argmax(1), p[d], multi_class="ovr"), accuracy(p[d], t[d], False)) for d in drawn]
        for name, values in zip(("AUC", "accuracy"), np.transpose(direct), strict=True):
            assert (found[name].low, found[name].high) == pytest.approx(np.quantile(values, [0.025, 0.975]))
        each = [roc_auc_score(t[d][:, 2], p[d][:, 2]) for d in drawn]
        assert found["AUC of c"].low == pytest.approx(np.quantile(each, 0.025))

    def test_several_labels_against_a_direct_computation(self):
        rng = np.random.default_rng(1)
        p, t = rng.uniform(size=(30, 2)), (rng.uniform(size=(30, 2)) < [0.5, 0.1]).astype(np.float32)
        t[:5, 0] = np.nan
        found = score_with_intervals(p, t, ["a", "b"], multi_label=True, resamples=40, seed=0)
        drawn = np.random.default_rng(0).choice(np.arange(30), (40, 30))
        assert any(t[d][:, 1].sum() == 0 for d in drawn)
        for statistic, name in ((auc, "AUC"), (lambda p, t: accuracy(p, t, True), "accuracy")):
            values = [statistic(p[d], t[d]) for d in drawn]
            assert (found[name].low, found[name].high) == pytest.approx(np.nanquantile(values, [0.025, 0.975]))

    def test_every_resample_has_the_rare_class(self):
        p, t = binary(40, 1.0)
        t[:, 1], t[7, 1] = 0, 1
        t[:, 0] = 1 - t[:, 1]
        score = score_with_intervals(p, t, ["a", "b"])["AUC"]
        assert score.low <= score.value <= score.high

    def test_seed(self):
        p, t = binary(30, 1.0)
        first, second, other = (score_with_intervals(p, t, ["a", "b"], resamples=200, seed=s) for s in (0, 0, 1))
        assert first == second != other

    def test_coverage(self):
        """The true AUC of normal distributions lies in about 95 % of the intervals."""
        shift = 1.0
        true = 0.7602499389065233  # standard normal distribution at shift / sqrt(2)
        hits = 0
        for seed in range(200):
            score = score_with_intervals(*binary(80, shift, seed), ["a", "b"], resamples=400)["AUC"]
            hits += score.low <= true <= score.high
        assert 0.89 <= hits / 200 <= 0.99

    def test_many_images_at_once(self, monkeypatch):
        p, t = binary(50, 1.0)
        whole = score_with_intervals(p, t, ["a", "b"], resamples=20)
        monkeypatch.setattr("nnunet_transformers.classification.scores.ELEMENTS_AT_ONCE", 300)
        parts = score_with_intervals(p, t, ["a", "b"], resamples=20)
        assert parts["AUC"].value == whole["AUC"].value
        assert parts["AUC"].low == pytest.approx(whole["AUC"].low, abs=0.05)
