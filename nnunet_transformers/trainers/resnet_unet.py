"""Trainers for the U-Net with a ResNet: ``nnUNetv2_train D 2d 0 -tr nnUNetTrainerResNet50UNet -p ...``."""

from __future__ import annotations

from ..architectures.resnet_unet import ResNetUNet
from .lengths import with_schedules
from .mgca import MGCARecipe
from .trainer import TransformerTrainer


class nnUNetTrainerResNet50UNet(TransformerTrainer):
    """U-Net with ResNet-50 and nnU-Net's augmentation, loss and deep supervision; the encoder is trained, too."""

    network_class = ResNetUNet
    planners = ("nnUNetPlannerResNet50UNet",)


class nnUNetTrainerResNet50UNetPaper(MGCARecipe, nnUNetTrainerResNet50UNet):
    """MGCA's recipe for ResNet-50, trained as a whole at one rate: the supplement freezes the ViT only."""


globals().update(with_schedules(nnUNetTrainerResNet50UNet, nnUNetTrainerResNet50UNetPaper))
