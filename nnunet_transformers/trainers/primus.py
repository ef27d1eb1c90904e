"""Trainer for Primus: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerPrimus -p nnUNetPrimusV3SPlans``."""

from __future__ import annotations

from ..architectures.primus import Primus
from .lengths import with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerPrimus(TransformerTrainer):
    """Primus at the rate of nnU-Net's own trainers for it, 3e-4; weight decay, warm-up and clipping are theirs as well.

    Theirs decay norms, biases and position embeddings too, and have AdamW's second beta at 0.98.
    """

    network_class = Primus
    default_lr = 3e-4
    planners = (
        "nnUNetPlannerPrimusV3S",
        "nnUNetPlannerPrimusV3M",
        "nnUNetPlannerPrimusV3L",
        "nnUNetPlannerPrimusV2S",
        "nnUNetPlannerPrimusV2M",
        "nnUNetPlannerPrimusV2L",
    )


globals().update(with_schedules(nnUNetTrainerPrimus))
