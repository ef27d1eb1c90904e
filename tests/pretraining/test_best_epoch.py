"""Methods that keep the epoch of the lowest validation loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_transformers.pretraining.best_epoch import BestEpochPretraining


class Trainer:
    enable_validation = True


class Method(BestEpochPretraining):
    """Reconstruction by one layer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 2)

    def create_optimizer(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def losses(self, batch):
        features = self.encoder(batch)
        return {"error": (features - batch).square().mean()}, features


@pytest.mark.parametrize(("lowest", "expected"), [(0.5, False), (float("inf"), True)])
def test_a_run_resumed_within_an_epoch(lowest, expected):
    """Lightning starts no epoch then; its weights are no best ones, unless no epoch was validated before."""
    module, trainer = Method(), Trainer()
    module.trainer = trainer
    module.lowest_val_loss.fill_(lowest)
    module.on_train_start()
    assert module.is_best is expected
