"""Trainers for SETR-PUP: ``nnUNetv2_train D 2d 0 -tr nnUNetTrainerSETRPUP -p nnUNetSETRPUPPlans``."""

from __future__ import annotations

from ..architectures.setr_pup import SETRPUP
from .lengths import with_schedules
from .mgca import MGCARecipe
from .trainer import TransformerTrainer


class nnUNetTrainerSETRPUP(TransformerTrainer):
    """SETR-PUP with nnU-Net's augmentation, loss and deep supervision; the encoder is trained, too."""

    network_class = SETRPUP
    planners = ("nnUNetPlannerSETRPUP", "nnUNetPlannerSETRPUPDINOv3S", "nnUNetPlannerSETRPUPDINOv3B")


class nnUNetTrainerSETRPUPPaper(MGCARecipe, nnUNetTrainerSETRPUP):
    """MGCA's recipe for ViT-B/16, whose encoder is frozen throughout."""

    frozen_fraction = 1.0


globals().update(with_schedules(nnUNetTrainerSETRPUP, nnUNetTrainerSETRPUPPaper))
