"""Trainer for MedNeXt: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerMedNeXt -p nnUNetMedNeXtSPlans``."""

from __future__ import annotations

from ..architectures.mednext import MedNeXt
from .lengths import with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerMedNeXt(TransformerTrainer):
    """MedNeXt with the release's recipe: AdamW at 1e-3, nnU-Net's weight decay, schedule and clipping, no warm-up.

    Weights from a smaller kernel (UpKern) are trained at one rate from the first iteration. The release has AdamW's
    epsilon at 1e-4.
    """

    network_class = MedNeXt
    default_weight_decay = 3e-5
    warmup_fraction = 0.0
    clip_grad_norm = 12.0
    layer_decay = 1.0
    frozen_fraction = 0.0
    planners = (
        "nnUNetPlannerMedNeXtS",
        "nnUNetPlannerMedNeXtB",
        "nnUNetPlannerMedNeXtM",
        "nnUNetPlannerMedNeXtL",
        "nnUNetPlannerMedNeXtSK5",
        "nnUNetPlannerMedNeXtBK5",
        "nnUNetPlannerMedNeXtMK5",
        "nnUNetPlannerMedNeXtLK5",
    )


globals().update(with_schedules(nnUNetTrainerMedNeXt))
