"""The network has what nnU-Net, planner, trainer and pretraining rely on, and the installed package is found."""

from __future__ import annotations

import pytest
from my_network import MyNetwork
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_transformers.testing import check_network


@pytest.mark.parametrize("ndim", MyNetwork.dimensions)
def test_contract(ndim: int) -> None:
    check_network("my_network", ndim)


def test_found_by_nnunet() -> None:
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerMyNetwork")
    planner = recursive_find_python_class("", "nnUNetPlannerMyNetwork", None)
    assert trainer.network_class is MyNetwork
    assert planner.network_name == "my_network"
