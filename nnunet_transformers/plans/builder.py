"""The class that builds a model's network: its trainer, or for most trainers one that needs nothing of training.

nnU-Net's trainer imports augmentation, plots and statistics, which takes as long as to import PyTorch; prediction needs
none of it where the trainer leaves the network to the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

from nnunetv2.inference import predict_from_raw_data
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from ..discovery import PLANNED_NETWORKS

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class PlannedNetwork:
    """Builds the network of a plan as nnU-Net's trainer does, in the place of trainers that leave it to that one."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network; arguments are those of nnU-Net's trainer."""
        network: nn.Module = get_network_from_plans(
            configuration_manager.network_arch_class_name,
            configuration_manager.network_arch_init_kwargs,
            configuration_manager.network_arch_init_kwargs_req_import,
            num_input_channels,
            num_output_channels,
            deep_supervision=enable_deep_supervision,
        )
        return network


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Find the trainer class of this name.

    Raises:
        ValueError: if nnU-Net does not find it, or what it finds is no trainer.
    """
    try:
        with redirect_stdout(StringIO()):  # nnU-Net prints advice for a name that it does not find
            trainer: type[nnUNetTrainer] = recursive_find_trainer_class_by_name(name)
            return trainer
    except (RuntimeError, AssertionError, TypeError) as error:  # the latter two if the name is that of something else
        raise ValueError(
            f"nnU-Net does not find the trainer {name}, which builds the model's network; install the package that has "
            "it, or name its folder in nnUNet_extTrainer"
        ) from error


def find_builder(trainer: str) -> type[nnUNetTrainer] | type[PlannedNetwork]:
    """Return the class whose ``build_network_architecture`` builds the network of a trainer's models.

    Raises:
        ValueError: as ``find_trainer``.
    """
    return PlannedNetwork if trainer in PLANNED_NETWORKS else find_trainer(trainer)


def builds_planned_network(trainer: str) -> bool:
    """Tell whether a trainer builds the network of the plan, as nnU-Net's does, rather than one of its own.

    Raises:
        ValueError: as ``find_trainer``.
    """
    if trainer in PLANNED_NETWORKS:
        return True
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    return find_trainer(trainer).build_network_architecture is nnUNetTrainer.build_network_architecture


@contextmanager
def finding_builders() -> Iterator[None]:
    """Let nnU-Net's predictor, which finds a trainer by name only to build the network, use ``find_builder``."""
    original = predict_from_raw_data.recursive_find_trainer_class_by_name
    predict_from_raw_data.recursive_find_trainer_class_by_name = find_builder
    try:
        yield
    finally:
        predict_from_raw_data.recursive_find_trainer_class_by_name = original
