"""Trainers for UNet-2022: ``nnUNetv2_train D 2d 0 -tr nnUNetTrainerUNet2022 -p nnUNetUNet2022TPlans``."""

from __future__ import annotations

from ..architectures.unet2022 import UNet2022
from .lengths import with_demo, with_schedules
from .trainer import TransformerTrainer


class nnUNetTrainerUNet2022(TransformerTrainer):
    """UNet-2022 with nnU-Net's augmentation and loss, which is applied to all three outputs."""

    network_class = UNet2022
    planners = ("nnUNetPlannerUNet2022T", "nnUNetPlannerUNet2022B", "nnUNetPlannerUNet2022L")
    use_all_outputs = True


class nnUNetTrainerUNet2022Paper(nnUNetTrainerUNet2022):
    """The paper's recipe (section 4.2): 1.2 Dice + 0.8 cross-entropy, Adam at a fixed rate.

    The paper gives no rate; 1e-4, no weight decay and gradients clipped at 12 are the release's for Synapse and ACDC.
    Outputs weigh 4/7, 2/7 and 1/7, the paper's 1/2, 1/4 and 1/8 normalised. Augmentation is nnU-Net's. The network is
    the plan's: the planner of size T leaves the release's drop path of 0.2 out, presets have it.
    """

    default_lr = 1e-4
    default_weight_decay = 0.0
    dice_weight = 1.2
    ce_weight = 0.8
    warmup_fraction = 0.0
    lr_power = 0.0
    clip_grad_norm = 12.0
    layer_decay = 1.0
    frozen_fraction = 0.0


globals().update(with_schedules(nnUNetTrainerUNet2022, nnUNetTrainerUNet2022Paper) | with_demo(nnUNetTrainerUNet2022))
