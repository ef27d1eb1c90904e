"""An exponential moving average (EMA) of the weights, with which a trainer validates and that its checkpoints hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.optim import Optimizer

AVERAGE, STEPS = "average", "averaged_steps"


class AveragesWeights(nnUNetTrainer):
    """Mixin for a trainer, listed before its class.

    After each step of the optimiser, average = d * average + (1 - d) * weights with
    d = min(``ema_decay``, (1 + t) / (10 + t)) after t steps, so that a short training forgets its start too. The
    average is kept in the optimiser's state. Checkpoints hold it as the network's weights and the trained weights in
    that state, so that nnU-Net predicts with the average and ``--c`` goes on with the others. Statistics of batch norm
    are not averaged.

    Attributes:
        ema_decay: the decay d; None averages nothing.
    """

    optimizer: Optimizer
    ema_decay: float | None = None

    def initialize(self) -> None:
        super().initialize()
        if self.ema_decay is not None:
            self.optimizer.register_step_post_hook(self._update_average)

    @torch.no_grad()
    def _update_average(self, optimizer: Optimizer, *_: object) -> None:
        assert self.ema_decay is not None
        for group in optimizer.param_groups:
            steps = group[STEPS] = group.get(STEPS, 0) + 1
            weights = [p for p in group["params"] if p.grad is not None]
            for weight in weights:
                optimizer.state[weight].setdefault(AVERAGE, weight.detach().clone())
            decay = min(self.ema_decay, (1 + steps) / (10 + steps))
            averages = [optimizer.state[weight][AVERAGE] for weight in weights]
            if averages:
                torch._foreach_lerp_(averages, weights, 1 - decay)

    def _swap(self) -> None:
        """Exchange weights and averages, if there are any."""
        if self.ema_decay is None:
            return
        for weight, state in self.optimizer.state.items():
            if AVERAGE in state:
                _exchange(weight, state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._swap()

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        self._swap()
        super().on_validation_epoch_end(val_outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        with self.averaged():
            super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        with self.averaged():
            super().save_checkpoint(filename)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        for weight, state in self.optimizer.state.items():
            if AVERAGE in state:
                _exchange(weight, state)
                if self.ema_decay is None:  # a plan that was changed since
                    del state[AVERAGE]


@torch.no_grad()
def _exchange(weight: torch.Tensor, state: dict[str, Any]) -> None:
    """Exchange a weight and its average, in place."""
    kept = weight.detach().clone()
    weight.copy_(state[AVERAGE])
    state[AVERAGE].copy_(kept)
