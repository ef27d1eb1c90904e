"""Trainers for SETR-PUP: ``nnUNetv2_train D 2d 0 -tr nnUNetTrainerSETRPUP -p nnUNetSETRPUPPlans``."""

from __future__ import annotations

from .base import TransformerTrainer
from .schedules import with_schedules


class nnUNetTrainerSETRPUP(TransformerTrainer):
    """SETR-PUP with nnU-Net's augmentation, loss and deep supervision; all of it is trained."""

    network_class_name = "nnunet_transformers.architectures.setr_pup.SETRPUP"
    planners = ("nnUNetPlannerSETRPUP",)


class nnUNetTrainerSETRPUPPaper(nnUNetTrainerSETRPUP):
    """MGCA's recipe for segmentation with ViT-B/16 (supplement B.3): a frozen encoder, AdamW at 5e-4, 50 epochs.

    Weight decay 1e-6; the supplement names no schedule, so the rate is fixed, and no clip, so that it is nnU-Net's 12.
    nnU-Net's are loss (the supplement has 10 focal + Dice), deep supervision, augmentation, the length of an epoch, and
    the end: there is no early stop, which the supplement has after 10 epochs without a lower validation loss.
    """

    default_epochs = 50
    default_lr = 5e-4
    default_weight_decay = 1e-6
    warmup_fraction = 0.0
    lr_power = 0.0
    clip_grad_norm = 12.0
    frozen_fraction = 1.0


globals().update(with_schedules(nnUNetTrainerSETRPUP, nnUNetTrainerSETRPUPPaper))
