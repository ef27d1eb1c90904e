"""What every pretraining run does besides training: stop when it has collapsed, write the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ..checkpoints import EncoderCheckpoint, save_encoder, save_timm_encoder


class SeedEveryBatch(Callback):
    """Make the random numbers of a batch depend on seed, epoch, batch and rank alone.

    A resumed run then draws what an uninterrupted one would have drawn.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        words = np.random.SeedSequence((self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))


class CollapseMonitor(Callback):
    """Stop a run whose features have become the same for every image.

    Args:
        threshold: smallest ``feature_spread`` of a healthy run.
        patience: optimiser steps below it that are still let pass.
    """

    def __init__(self, threshold: float = 0.02, patience: int = 100) -> None:
        self.threshold, self.patience, self.below = threshold, patience, 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        spread = trainer.callback_metrics.get("feature_spread")
        if spread is None:
            return
        self.below = self.below + 1 if spread < self.threshold else 0
        if self.below > self.patience:
            raise RuntimeError(
                f"collapsed: the features of different images have been alike for {self.below} batches (spread "
                f"{float(spread):.3f}, step {trainer.global_step}). Lower the learning rate, enlarge the batch or "
                "accumulate more of them, or use pre-norm; checkpoints from before are in "
                f"{trainer.default_root_dir}"
            )


class EncoderWriter(Callback):
    """Write the method's checkpoints after every epoch.

    Args:
        folder: for the files; the run's by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        recipe = {**module.hparams, "epochs": trainer.current_epoch + 1, "steps": trainer.global_step}
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, checkpoint in module.checkpoints(trainer.datamodule.index, recipe).items():
            save = save_encoder if isinstance(checkpoint, EncoderCheckpoint) else save_timm_encoder
            save(checkpoint, folder / name)


def feature_spread(features: Tensor) -> Tensor:
    """Standard deviation over the batch of the normalised features, 1 when they fill the sphere, 0 when all are alike.

    Args:
        features: (batch, dim).
    """
    features = F.normalize(features.detach().float(), dim=1)
    return features.std(dim=0).mean() * features.shape[1] ** 0.5
