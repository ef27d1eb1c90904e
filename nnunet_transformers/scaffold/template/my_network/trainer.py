"""Trainer: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerMyNetwork -p nnUNetMyNetworkPlans``."""

from __future__ import annotations

from nnunet_transformers.trainers.lengths import with_schedules
from nnunet_transformers.trainers.trainer import TransformerTrainer

from .network import MyNetwork


class nnUNetTrainerMyNetwork(TransformerTrainer):
    """The recipe of nnunet-transformers; its values are class attributes, such as ``default_lr``, to be set here."""

    network_class = MyNetwork
    planners = ("nnUNetPlannerMyNetwork",)


# nnUNetTrainerMyNetwork_1epoch, _5epochs ... as nnU-Net's own trainers have them
globals().update(with_schedules(nnUNetTrainerMyNetwork))
