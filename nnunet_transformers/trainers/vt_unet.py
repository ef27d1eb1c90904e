"""Trainer for VT-UNet: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerVTUNet -p nnUNetVTUNetTPlans``."""

from __future__ import annotations

from ..architectures.vt_unet import VTUNet
from .lengths import with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerVTUNet(TransformerTrainer):
    """VT-UNet with nnU-Net's augmentation, loss and deep supervision."""

    network_class = VTUNet
    planners = ("nnUNetPlannerVTUNetT", "nnUNetPlannerVTUNetS", "nnUNetPlannerVTUNetB")


globals().update(with_schedules(nnUNetTrainerVTUNet))
