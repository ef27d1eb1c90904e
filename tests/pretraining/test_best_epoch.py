"""Methods that keep the epoch of the lowest validation loss."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning import LightningDataModule
from lightning import Trainer as LightningTrainer
from torch import nn
from torch.utils.data import DataLoader

from nnunet_transformers.pretraining.best_epoch import BestEpochPretraining
from nnunet_transformers.runs.callbacks import CheckpointWriter


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


@pytest.mark.parametrize("is_validated", [True, False])
@pytest.mark.parametrize("lowest", [0.5, float("inf")])
def test_a_run_that_ends_within_an_epoch(lowest, is_validated, tmp_path):
    """Its weights are no best ones, unless no epoch was validated before or none is."""
    module = Scored([])
    module.trainer = SimpleNamespace(
        enable_validation=is_validated,
        callbacks=[],
        is_global_zero=True,
        datamodule=Data(),
        precision="32",
        current_epoch=1,
        global_step=7,
        world_size=1,
        accumulate_grad_batches=1,
    )
    module.lowest_val_loss.fill_(lowest)
    CheckpointWriter(str(tmp_path)).on_train_epoch_end(module.trainer, module)
    assert bool(module.written) is (not is_validated or lowest == float("inf"))


class Scored(Method):
    """Has given validation losses after the steps, and notes the steps whose weights are written."""

    def __init__(self, scores):
        super().__init__()
        self.scores, self.written = scores, []

    def configure_optimizers(self):
        return self.create_optimizer()

    def losses(self, batch):
        losses, features = super().losses(batch)
        return losses if self.training else {"error": torch.tensor(self.scores[self.global_step - 1])}, features

    def checkpoints(self, index, recipe):
        self.written += [self.global_step] * self.is_best
        return {}


class Data(LightningDataModule):
    """Four batches to train on, and one to validate on."""

    batch_size, index = 2, None

    def train_dataloader(self):
        return DataLoader(torch.randn(8, 2), self.batch_size)

    def val_dataloader(self):
        return DataLoader(torch.randn(2, 2), self.batch_size)


@pytest.mark.parametrize(
    ("interval", "scores", "written"),
    [
        (1.0, (9.0, 9, 9, 3, 9, 9, 9, 2), [4, 8]),
        (0.5, (9.0, 1, 9, 2, 9, 1.5, 9, 1.7), [2]),
        (0.5, (9.0, 2, 9, 1, 9, 3, 9, 0.5), [2, 4, 8]),
        # the last step of an epoch is not validated
        (3, (9.0, 9, 2, 0, 9, 9, 1, 0), [3, 7]),
    ],
)
def test_weights_of_the_lowest_loss_within_an_epoch(interval, scores, written, tmp_path):
    module = Scored(scores)
    trainer = LightningTrainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[CheckpointWriter(str(tmp_path))],
        val_check_interval=interval,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, datamodule=Data())
    assert module.written == written
