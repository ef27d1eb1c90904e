"""Trainer of linear probes: ``nnUNetv2_train D 3d_fullres 0 -tr nnUNetTrainerLinearProbe -p PLANS``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ..architectures import SegmentationNetwork
from ..architectures.linear_probe import LinearProbe
from ..discovery import PLANNERS
from ..plans.training import TrainingSettings
from .lengths import with_schedules
from .trainer import TransformerTrainer

# settings of a plan that do not depend on what is trained
OF_THE_DATA = (
    "oversample_foreground",
    "oversampling",
    "mirror_axes",
    "mirroring",
    "augment_on_device",
    "surface_metrics",
)


class nnUNetTrainerLinearProbe(TransformerTrainer):
    """Train linear heads on the frozen encoder of any ``SegmentationNetwork`` with the plan's initial weights.

    A plan without initial weights gives a baseline with a random encoder.
    """

    network_class = SegmentationNetwork  # any network
    planners = tuple(PLANNERS)
    default_epochs = 20
    default_iterations = 50
    default_lr = 1e-2
    default_weight_decay = 0.0
    default_deep_supervision = False
    frozen_fraction = 0.0

    @staticmethod
    def followed(settings: TrainingSettings) -> TrainingSettings:
        """Those of the data alone: the plan's recipe is for training the network."""
        recipe = [field.name for field in fields(settings) if field.name not in OF_THE_DATA]
        return replace(settings, **dict.fromkeys(recipe))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        network = get_network_from_plans(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=False,
        )
        return LinearProbe(network, num_output_channels)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: a linear probe has no deep supervision."""

    @property
    def initialised_network(self) -> nn.Module:
        return self.plain_network.network

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.plain_network.heads.parameters())}]


globals().update(with_schedules(nnUNetTrainerLinearProbe))
