"""Callbacks of a run: reproducible random numbers, stop on representation collapse, writing of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from .distributed import samples_per_step


class SeedEveryBatch(Callback):
    """Seed torch's generator before every batch from the run's seed, epoch, batch index and rank.

    A resumed run then draws the same random numbers as an uninterrupted one.

    Args:
        seed: seed of the run; by default that of ``seed_everything``, which is set after callbacks are made.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed
        words = np.random.SeedSequence((seed, trainer.current_epoch, batch_idx, trainer.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))


class CollapseMonitor(Callback):
    """Stop a run on divergence or representation collapse, by the logged metric ``feature_spread``.

    Args:
        threshold: smallest ``feature_spread`` of a healthy run.
        patience: number of consecutive batches below the threshold that are tolerated; ``CheckpointWriter`` does not
            write during them.

    Raises:
        RuntimeError: on divergence or collapse, from the hook.
    """

    def __init__(self, threshold: float = 0.02, patience: int = 100) -> None:
        self.threshold, self.patience, self.below = threshold, patience, 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        for name, what in (("feature_spread", "features are"), ("loss", "loss is")):
            value = trainer.callback_metrics.get(name)
            if value is not None and not torch.isfinite(value):
                raise RuntimeError(
                    f"diverged: the {what} not finite ({where}{images_of(batch)}). Lower the learning rate or train in "
                    f"float32; the encoder and the state of the epoch before are in {trainer.default_root_dir}"
                )
        spread = trainer.callback_metrics.get("feature_spread")
        if spread is None:
            return
        self.below = self.below + 1 if spread < self.threshold else 0
        if self.below > self.patience:
            raise RuntimeError(
                f"collapsed: the features of different images were nearly equal for {self.below} batches (spread "
                f"{float(spread):.3f}, {where}). Lower the learning rate, enlarge the batch or accumulate more of "
                f"them, or use pre-norm; the last encoder from before is in {trainer.default_root_dir}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"below": self.below}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.below = state_dict["below"]


class CheckpointWriter(Callback):
    """Write the files of the module's ``checkpoints(index, recipe)`` after every training epoch.

    Those of a module that states ``is_written_when_validated`` are written after every validation, of which an epoch
    may have several: the next step changes the weights that it was of.

    Args:
        folder: folder to write to; by default the trainer's ``default_root_dir``.

    Attributes:
        written: files that were written.
        left_out: reason of the last epoch that was not written; empty if it was.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.written: set[Path] = set()
        self.left_out = ""

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if getattr(module, "is_written_when_validated", False) and not trainer.sanity_checking:
            self._write(trainer, module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if not getattr(module, "is_written_when_validated", False):
            self._write(trainer, module)

    def _write(self, trainer: Any, module: Any) -> None:
        below = max((c.below for c in trainer.callbacks if isinstance(c, CollapseMonitor)), default=0)
        self.left_out = f"the features of different images were nearly equal in its last {below} batches" * bool(below)
        if below or not trainer.is_global_zero:
            return
        recipe = hyperparameters(module) | {
            "batch_size": samples_per_step(trainer, trainer.datamodule.batch_size),
            "precision": trainer.precision,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "epochs": trainer.current_epoch + 1,
            "steps": trainer.global_step,
        }
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, checkpoint in module.checkpoints(trainer.datamodule.index, recipe).items():
            checkpoint.save(folder / name)
            self.written.add(folder / name)


def images_of(batch: Any) -> str:
    """Return the images of a batch as a part of a message, ``; images a.png, b.png``; empty where it does not say."""
    names = batch.get("name") if isinstance(batch, Mapping) else None
    return f"; images {', '.join(map(str, names))}" if names else ""


def hyperparameters(module: LightningModule) -> dict[str, Any]:
    """Return a module's saved arguments without those that LightningCLI adds, which begin with an underscore."""
    return {name: value for name, value in module.hparams.items() if not name.startswith("_")}


def feature_spread(features: Tensor) -> Tensor:
    """Compute the spread of features: 1 for features spread over the sphere, 0 for equal ones.

    It is the standard deviation of the normalised features over the batch, averaged over dim, times sqrt(dim)
    (SimSiam, https://arxiv.org/abs/2011.10566, section 4.1).

    Args:
        features: (batch, dim).

    Examples:
        >>> feature_spread(torch.ones(8, 16))
        tensor(0.)
    """
    features = F.normalize(features.detach().float(), dim=1)
    spread: Tensor = features.std(dim=0).mean() * features.shape[1] ** 0.5
    return spread
