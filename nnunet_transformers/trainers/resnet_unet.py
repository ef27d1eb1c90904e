"""Trainers for the U-Net with a ResNet: ``nnUNetv2_train D 2d 0 -tr nnUNetTrainerResNet50UNet -p ...``."""

from __future__ import annotations

from .base import TransformerTrainer
from .schedules import with_schedules


class nnUNetTrainerResNet50UNet(TransformerTrainer):
    """U-Net with ResNet-50 and nnU-Net's augmentation, loss and deep supervision; all of it is trained."""

    network_class_name = "nnunet_transformers.architectures.resnet_unet.ResNetUNet"
    planners = ("nnUNetPlannerResNet50UNet",)


class nnUNetTrainerResNet50UNetPaper(nnUNetTrainerResNet50UNet):
    """MGCA's recipe for segmentation with ResNet-50 (supplement B.3): all of it at one rate, AdamW at 5e-4, 50 epochs.

    Weight decay 1e-6 and the rest as in ``nnUNetTrainerSETRPUPPaper``; the supplement freezes the ViT alone.
    """

    default_epochs = 50
    default_lr = 5e-4
    default_weight_decay = 1e-6
    warmup_fraction = 0.0
    lr_power = 0.0
    clip_grad_norm = 12.0
    layer_decay = 1.0
    frozen_fraction = 0.0


globals().update(with_schedules(nnUNetTrainerResNet50UNet, nnUNetTrainerResNet50UNetPaper))
