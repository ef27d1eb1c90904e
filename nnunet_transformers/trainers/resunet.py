"""Trainer for ResUnet: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerResUnet -p nnUNetResUnetPlans``."""

from __future__ import annotations

from ..architectures.resunet import ResUnet
from .lengths import with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerResUnet(TransformerTrainer):
    """ResUnet with nnU-Net's augmentation, loss and deep supervision."""

    network_class = ResUnet
    planners = ("nnUNetPlannerResUnet",)


globals().update(with_schedules(nnUNetTrainerResUnet))
