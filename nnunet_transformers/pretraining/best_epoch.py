"""Methods that keep the epoch of the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..weights.sealed import SealedCheckpoint
from .data.index import PreparedIndex
from .encoder_pretraining import EncoderPretraining


class BestEpochPretraining(EncoderPretraining):
    """Base of the methods whose files are written only when the validation loss is the lowest so far.

    They hold the weights that were validated, after an epoch or within it (``val_check_interval``).

    A validation loss that is not finite ends the run.

    An epoch that ``max_steps`` cuts short is not validated; its files are written only if no epoch was validated.

    Attributes:
        lowest_val_loss: lowest validation loss so far, infinite before the first; a buffer, for resumed runs.
        is_best: whether the last validation was the best so far; True before the first.
    """

    lowest_val_loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lowest_val_loss", torch.tensor(torch.inf))
        self.is_best = True

    @property
    def is_written_when_validated(self) -> bool:
        """Whether files are written after validations; until the first one, and without any, after epochs."""
        return bool(self.trainer.enable_validation) and not self.lowest_val_loss.isinf()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        loss, lowest = float(self.trainer.callback_metrics["val_loss"]), float(self.lowest_val_loss)
        if not math.isfinite(loss):
            raise RuntimeError(
                f"diverged: the validation loss is {loss} (epoch {self.current_epoch}). Lower the learning rate or "
                "train in float32; the files of the best epoch before are kept"
            )
        self.is_best = loss < lowest
        self.lowest_val_loss.fill_(min(loss, lowest))

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> Mapping[str, SealedCheckpoint]:
        """Build the files to write; none if an earlier validation loss was lower."""
        return super().checkpoints(index, recipe) if self.is_best else {}
