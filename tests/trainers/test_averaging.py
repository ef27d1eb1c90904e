"""The moving average of the weights: its formula, what validates, and what checkpoints hold."""

from __future__ import annotations

import json

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.trainers.averaging import AVERAGE

from .conftest import CPU, PLANS, TRAINER

DECAY = 0.25  # more than (1 + t) / (10 + t) in the first two steps, and less from then on


@pytest.fixture
def make(prepared):
    """Create trainers whose plan states the decay."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"

    def trainer(decay=DECAY):
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        plans["plans_name"] = f"{PLANS}_ema"
        plans["configurations"]["3d_fullres"]["training"] = {} if decay is None else {"ema_decay": decay}
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
        made = get_trainer_from_args("900", "3d_fullres", 0, TRAINER, plans["plans_name"], device=CPU)
        made.initialize()
        return made

    return trainer


def weights(trainer):
    return [p.detach().clone() for p in trainer.network.parameters()]


def step(trainer, seed):
    """Step with drawn gradients; returns the weights after it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainer.network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    trainer.optimizer.step()
    return weights(trainer)


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-7)


class TestAverage:
    def test_formula(self, make):
        trainer = make()
        expected = None
        for t in range(1, 6):
            after = [w.double() for w in step(trainer, t)]
            decay = min(DECAY, (1 + t) / (10 + t))
            expected = (
                after
                if expected is None
                else [decay * average + (1 - decay) * w for average, w in zip(expected, after, strict=True)]
            )
        with trainer.averaged():
            assert_equal(weights(trainer), expected)
        assert_equal(weights(trainer), after)

    def test_validation_has_the_average(self, make, monkeypatch):
        trainer = make()
        for t in range(3):
            trained = step(trainer, t)
        trainer.on_validation_epoch_start()
        validated = weights(trainer)
        monkeypatch.setattr(trainer.logger, "log", lambda *_: None)
        results = {"loss": 0.0, **dict.fromkeys(("tp_hard", "fp_hard", "fn_hard"), torch.ones(2).numpy())}
        trainer.on_validation_epoch_end([results])
        assert_equal(weights(trainer), trained)
        with trainer.averaged():
            assert_equal(validated, weights(trainer))
        assert not torch.equal(validated[0], trained[0])

    def test_checkpoint(self, make, tmp_path):
        """It predicts with the average, and a training continues from the trained weights."""
        trainer, continued = make(), make()
        for t in range(3):
            trained = step(trainer, t)
        with trainer.averaged():
            average = weights(trainer)
        trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        stored = torch.load(tmp_path / "checkpoint.pth", weights_only=False)["network_weights"]
        assert_equal([stored[name] for name, _ in trainer.network.named_parameters()], average)
        continued.load_checkpoint(str(tmp_path / "checkpoint.pth"))
        assert_equal(weights(continued), trained)
        assert_equal(step(continued, 9), step(trainer, 9))
        with trainer.averaged(), continued.averaged():
            assert_equal(weights(continued), weights(trainer))

    def test_without(self, make, tmp_path):
        trainer = make()
        step(trainer, 0)
        trained = step(trainer, 1)
        trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        plain = make(decay=None)
        plain.load_checkpoint(str(tmp_path / "checkpoint.pth"))
        assert_equal(weights(plain), trained)
        assert not any(AVERAGE in state for state in plain.optimizer.state.values())
