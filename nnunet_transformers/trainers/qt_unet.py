"""Trainers for QT-UNet: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerQTUNet -p nnUNetQTUNetTPlans``."""

from __future__ import annotations

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Adam, Optimizer

from ..architectures.qt_unet import QTUNet
from .lengths import with_demo, with_schedules
from .precision import in_float32
from .trainer import TransformerTrainer


class nnUNetTrainerQTUNet(TransformerTrainer):
    """QT-UNet with nnU-Net's augmentation, loss and deep supervision."""

    network_class = QTUNet
    planners = ("nnUNetPlannerQTUNetT", "nnUNetPlannerQTUNetS", "nnUNetPlannerQTUNetB")


class nnUNetTrainerQTUNetThesis(nnUNetTrainerQTUNet):
    """The thesis's recipe (sections 3.3.10 and 3.5, table 3.6), for comparison rather than for use.

    Adam at 0.4e-4 with cosine decay and no weight decay, 350 epochs, one sample a step, Dice loss alone,
    float32, drop path 0.2, no deep supervision. Images, augmentation and folds are nnU-Net's, not the thesis's. Dice
    alone drives the logits to background where most crops contain nothing else: the thesis reports 0 on MSD task 7.
    """

    default_epochs = 350
    default_lr = 0.4e-4
    default_weight_decay = 0.0
    default_deep_supervision = False
    ce_weight = 0.0
    layer_decay = 1.0
    frozen_fraction = 0.0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        return get_network_from_plans(
            configuration_manager.network_arch_class_name,
            {
                **configuration_manager.network_arch_init_kwargs,
                "drop_path_rate": 0.2,
                "full_resolution_channels": 0,
                # DDP requires a gradient for every parameter, and these get none without deep supervision
                "auxiliary_heads": False,
            },
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )

    def initialize(self) -> None:
        super().initialize()
        in_float32(self.plain_network, self.device)

    def _set_batch_size_and_oversample(self) -> None:
        self.configuration_manager.configuration["batch_size"] = (
            torch.distributed.get_world_size() if self.is_ddp else 1
        )
        super()._set_batch_size_and_oversample()

    def configure_optimizers(self) -> tuple[Optimizer, Scheduler]:
        optimizer = Adam(self.network.parameters(), lr=self.initial_lr)
        return optimizer, CosineLRScheduler(optimizer, t_initial=self.num_epochs)


globals().update(with_schedules(nnUNetTrainerQTUNet, nnUNetTrainerQTUNetThesis) | with_demo(nnUNetTrainerQTUNet))
