"""Base of the methods of OpenMind's comparison: its optimisers, and warm-up with polynomial decay.

Wald et al., "An OpenMind for 3D medical vision self-supervised learning", ICCV 2025, https://arxiv.org/abs/2412.17041,
and its code, nnssl, whose learning rate changes once per epoch.
"""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LRScheduler

from ..runs.schedules import polynomial_with_warmup
from .encoder_pretraining import EncoderPretraining, check_choice

OPTIMIZERS = ("adamw", "sgd")


class OpenMindPretraining(EncoderPretraining):
    """Base of methods with the hyper-parameters ``optimizer``, ``lr``, ``weight_decay`` and ``warmup_epochs``.

    ``optimizer`` is "adamw", for transformers, or "sgd" with Nesterov momentum, for CNNs. Weight decay is of all
    parameters.

    Raises:
        ValueError: from ``create_optimizer`` if there is no such optimiser.
    """

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings, parameters = self.hparams, self.trainable_parameters()
        check_choice("optimizer", [settings.optimizer], OPTIMIZERS)
        common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        if settings.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=0.99, nesterov=True, **common)
        return torch.optim.AdamW(parameters, betas=(0.9, 0.98), **common)

    def create_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        return polynomial_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs)
