"""What every pretraining run does besides training: stop when it has collapsed, write the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from ..checkpoints import EncoderCheckpoint, encoder_weights, save_encoder


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
    """Write the encoder's checkpoint after every epoch.

    Args:
        path: file; ``encoder.pth`` in the run's folder by default.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        settings, index = module.hparams, trainer.datamodule.index
        checkpoint = EncoderCheckpoint(
            weights=encoder_weights(module.encoder),
            name=settings["network"],
            patch_size=tuple(settings["patch_size"]),
            input_channels=settings["input_channels"],
            overrides=settings["network_overrides"] or {},
            spacing=tuple(index["spacing"])[-len(settings["patch_size"]) :],
            normalization=tuple(index["normalization"]),
            method=type(module).__name__,
            recipe={**settings, "epochs": trainer.current_epoch + 1, "steps": trainer.global_step},
            num_cases=len(index["cases"]),
        )
        path = Path(self.path or Path(trainer.default_root_dir) / "encoder.pth")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_encoder(checkpoint, path)
