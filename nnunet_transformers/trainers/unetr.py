"""Trainers for SwinUNETR and UNETR: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerSwinUNETR -p ...``."""

from __future__ import annotations

from ..architectures.swin_unetr import SwinUNETR
from ..architectures.unetr import UNETR
from .lengths import with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerSwinUNETR(TransformerTrainer):
    """SwinUNETR and SwinUNETR-V2 with nnU-Net's augmentation and loss."""

    network_class = SwinUNETR
    planners = ("nnUNetPlannerSwinUNETR", "nnUNetPlannerSwinUNETRV2")


class nnUNetTrainerUNETR(TransformerTrainer):
    """UNETR with nnU-Net's augmentation and loss, at the paper's rate."""

    network_class = UNETR
    default_lr = 1e-4
    planners = ("nnUNetPlannerUNETR",)


globals().update(with_schedules(nnUNetTrainerSwinUNETR, nnUNetTrainerUNETR))
