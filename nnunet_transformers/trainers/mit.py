"""Trainers for MiT: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerMiT -p nnUNetMiT7Plans``."""

from __future__ import annotations

from ..architectures.mit import MiT
from .lengths import with_demo, with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerMiT(TransformerTrainer):
    """MiT with nnU-Net's augmentation, loss and deep supervision."""

    network_class = MiT
    planners = ("nnUNetPlannerMiT7", "nnUNetPlannerMiT22")


class nnUNetTrainerMiTPaper(nnUNetTrainerMiT):
    """The recipe of UniMiSS's downstream tasks (appendix, table 2, BCV): AdamW at 1e-4, 25,000 iterations.

    Weight decay 3e-5, polynomial decay without warm-up, gradients clipped at 12. CHAOS trains for 50,000 iterations
    and JSRT for 10,000; use the variant with the nearest schedule length.
    """

    default_epochs = 100
    default_lr = 1e-4
    default_weight_decay = 3e-5
    warmup_fraction = 0.0
    clip_grad_norm = 12.0
    layer_decay = 1.0
    frozen_fraction = 0.0


globals().update(with_schedules(nnUNetTrainerMiT, nnUNetTrainerMiTPaper) | with_demo(nnUNetTrainerMiT))
