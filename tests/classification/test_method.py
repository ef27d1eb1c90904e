"""Loss, its weights, and which weights are kept."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunet_transformers.classification.data import ClassificationData
from nnunet_transformers.classification.method import Classification, balanced_weights
from tests.classification.shapes import write_shapes


def method(multi_label=False, weights=None, **kwargs):
    module = Classification(network="resnet10t", patch_size=(32, 32), **kwargs)
    module.multi_label, module.loss_weights = multi_label, weights
    return module


class TestLoss:
    def test_classes(self):
        logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 2, 2])
        targets = F.one_hot(target, 3).float()
        assert method().loss(logits, targets) == pytest.approx(float(F.cross_entropy(logits, target)))
        weights = torch.from_numpy(balanced_weights(targets.numpy(), False))
        assert weights.tolist() == [2.0, 2.0, 0.5]
        expected = F.cross_entropy(logits, target, weights)
        assert method(weights=weights).loss(logits, targets) == pytest.approx(float(expected))

    def test_labels_some_unknown(self):
        logits = torch.randn(4, 2, requires_grad=True)
        targets = torch.tensor([[1, math.nan], [0, math.nan], [0, 1], [0, 0]])
        weights = torch.from_numpy(balanced_weights(targets.numpy(), True))
        assert weights.tolist() == [3.0, 1.0]
        parts = [
            F.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 0], reduction="sum", pos_weight=weights[:1]),
            F.binary_cross_entropy_with_logits(logits[2:, 1], targets[2:, 1], reduction="sum"),
        ]
        loss = method(True, weights).loss(logits, targets)
        assert loss.item() == pytest.approx(sum(part.item() for part in parts) / 6)
        loss.backward()
        assert logits.grad[:2, 1].tolist() == [0, 0]
        assert logits.grad.isfinite().all()
        assert method(True).loss(logits, torch.full((4, 2), math.nan)) == 0


class TestBest:
    def kept(self, runs, targets, monkeypatch, **kwargs):
        """Which of several validations is kept."""
        module = method(**kwargs)
        strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
        data = SimpleNamespace(val_targets=np.array(targets, np.float32))
        module._trainer = SimpleNamespace(strategy=strategy, datamodule=data, sanity_checking=False)
        monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
        kept = []
        for positive in runs:
            p = torch.tensor(positive)
            module.collected = torch.stack([1 - p, p, torch.ones_like(p)], 1)
            module.on_validation_epoch_end()
            kept.append(module.is_best)
        return kept, module

    def test_by_auc_then_loss(self, monkeypatch):
        targets = [[1, 0], [1, 0], [0, 1]]
        runs = [[0.6, 0.4, 0.5], [0.1, 0.2, 0.3], [0.1, 0.1, 0.9], [0.4, 0.4, 0.6]]
        kept, module = self.kept(runs, targets, monkeypatch)
        assert kept == [True, True, True, False]
        assert module.scores["val_auc"] == 1
        assert module.scores["val_accuracy"] == 1

    @pytest.mark.parametrize("ordered", [5, 6, 7, 8, 9])
    def test_equal_auc_that_single_precision_rounds(self, ordered, monkeypatch):
        """AUC of 0.5 to 0.9, with the same order of the images and another loss."""
        scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0, 0])
        scores[5:] = np.interp([min(ordered, 5), max(0, ordered - 5)], range(6), [1, 0.85, 0.75, 0.65, 0.55, 0.1])
        runs = [scores.tolist(), (scores / 2).tolist(), (0.05 + 0.9 * scores).tolist()]
        targets = [[0, 1]] * 5 + [[1, 0]] * 2
        losses = []
        for run in runs:
            _, module = self.kept([run], targets, monkeypatch)
            assert module.scores["val_auc"] == pytest.approx(ordered / 10)
            losses.append(module.scores["val_loss"])
        kept, _ = self.kept(runs, targets, monkeypatch)
        assert kept == [losses[i] < min(losses[:i], default=math.inf) for i in range(3)]
        assert len(set(losses)) == 3

    def test_by_loss(self, monkeypatch):
        runs = [[0.4, 0.4, 0.5], [0.1, 0.2, 0.3]]
        kept, _ = self.kept(runs, [[1, 0], [1, 0], [0, 1]], monkeypatch, select_by="loss")
        assert kept == [True, True]
        kept, _ = self.kept(runs[::-1], [[1, 0], [1, 0], [0, 1]], monkeypatch, select_by="loss")
        assert kept == [True, False]

    def test_loss_where_a_class_is_missing(self, monkeypatch):
        kept, module = self.kept([[0.4, 0.4], [0.6, 0.6], [0.1, 0.1]], [[1, 0], [1, 0]], monkeypatch)
        assert kept == [True, False, True]
        assert set(module.scores) == {"val_accuracy", "val_loss"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), 16)


class TestData:
    def test_share_of_the_training_images(self, data):
        folder, table = map(str, data)
        whole, half, again = (
            ClassificationData(folder, table, (16, 16, 16), train_share=s, seed=1) for s in (1.0, 0.5, 0.5)
        )
        assert (len(whole.train_numbers), len(half.train_numbers)) == (8, 4)
        assert half.train_numbers.tolist() == again.train_numbers.tolist()
        assert half.train_targets.sum(0).tolist() == [2, 2]
        assert half.val_numbers.tolist() == whole.val_numbers.tolist()
        assert "8 images to train on, 4 to validate on (ball 4 and 2, cube 4 and 2)" in whole.summary()
        with pytest.raises(ValueError, match="train_share must be above 0 and at most 1"):
            ClassificationData(folder, table, (16, 16, 16), train_share=0)

    def test_each_image_once_an_epoch(self, data):
        folder, table = map(str, data)
        source = ClassificationData(folder, table, (16, 16, 16), 2, intensity=False)
        source.setup("fit")
        samples = source.epoch()
        orders = []
        for samples.epoch in range(2):
            crops = [samples[i][0] for i in range(len(samples))]
            orders.append([float(crop.sum()) for crop in crops])
        assert crops[0].shape == (2, 16, 16, 16)
        assert len(set(orders[0])) == 8
        assert sorted(orders[0]) == sorted(orders[1])
        assert orders[0] != orders[1]
        number, parts = source.validation[1]
        assert (number, parts.shape) == (1, (1, 2, 16, 16, 16))

    def test_seed_draws_the_same_crops_as_ever(self, data):
        """Pinned numbers: of when published classifiers were trained."""
        source = ClassificationData(*map(str, data), (12, 12, 12), 2, seed=3)
        source.setup("fit")
        samples = source.epoch()
        samples.epoch = 1
        crop, targets = samples[2]
        values = crop.double().flatten()
        placed = values @ torch.linspace(0, 1, len(values), dtype=torch.float64)
        assert (float(values.sum()), float(placed)) == pytest.approx((1328.8256, 462.4452), rel=1e-5)
        assert targets.tolist() == [0, 1]
        assert source.val_numbers.tolist() == [4, 5, 12, 13]


def test_a_validation_image_without_probabilities_is_named(data, monkeypatch):
    module = method()
    module.network.reset_head(2)
    module.multi_label = False
    source = ClassificationData(*map(str, data), (16, 16, 16), 1)
    monkeypatch.setattr(Classification, "data", property(lambda _: source))
    module._trainer = SimpleNamespace(current_epoch=3)
    name = source.names[source.val_numbers[1]]
    with pytest.raises(RuntimeError, match=rf"validation image {name} are not finite \(epoch 3\)"):
        module.validation_step((1, torch.full((2, 1, 32, 32), math.nan)), 0)


def test_validation_needs_a_label(data, tmp_path):
    rows = [f"case_{i},{i % 2},{1 - i % 2},train" for i in range(8)] + ["case_8,,,val"]
    (tmp_path / "t.csv").write_text("\n".join(["image,a,b,split", *rows]))
    with pytest.raises(ValueError, match=r"no label of the 1 validation images of .* is known"):
        ClassificationData(str(data[0]), str(tmp_path / "t.csv"), (16, 16, 16), 1, labels=("a", "b"))


def test_diverged(monkeypatch):
    module = method()
    module.network.reset_head(2)
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, default_root_dir="here")
    with pytest.raises(RuntimeError, match="diverged: the loss is not finite"):
        module.training_step((torch.full((2, 1, 32, 32), math.nan), torch.eye(2)), 0)
