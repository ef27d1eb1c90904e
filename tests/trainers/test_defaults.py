"""Every value of every recipe, as docs/training.md and the papers have it."""

from __future__ import annotations

import pickle
from importlib import import_module

import pytest

from nnunet_transformers.discovery import CLASSES, MAIN_TRAINERS, TRAINERS, demo_name
from nnunet_transformers.trainers.trainer import TransformerTrainer

BASE = {
    "default_epochs": 1000,
    "default_iterations": 250,
    "default_lr": 1e-3,
    "default_weight_decay": 0.05,
    "default_deep_supervision": True,
    "dice_weight": 1.0,
    "ce_weight": 1.0,
    "focal_weight": None,
    "use_all_outputs": False,
    "warmup_fraction": 0.05,
    "lr_power": 0.9,
    "clip_grad_norm": 1.0,
    "layer_decay": 0.75,
    "frozen_fraction": 0.05,
}
AT_ONE_RATE = {"layer_decay": 1.0, "frozen_fraction": 0.0}
MGCA = {
    "default_epochs": 50,
    "default_lr": 5e-4,
    "default_weight_decay": 1e-6,
    "warmup_fraction": 0.0,
    "lr_power": 0.0,
    "clip_grad_norm": 12.0,
    **AT_ONE_RATE,
}
RECIPES = {
    "nnUNetTrainerQTUNet": {},
    "nnUNetTrainerQTUNetThesis": {
        "default_epochs": 350,
        "default_lr": 0.4e-4,
        "default_weight_decay": 0.0,
        "default_deep_supervision": False,
        "ce_weight": 0.0,
        **AT_ONE_RATE,
    },
    "nnUNetTrainerVTUNet": {},
    "nnUNetTrainerUNet2022": {"use_all_outputs": True},
    "nnUNetTrainerUNet2022Paper": {
        "use_all_outputs": True,
        "default_lr": 1e-4,
        "default_weight_decay": 0.0,
        "dice_weight": 1.2,
        "ce_weight": 0.8,
        "warmup_fraction": 0.0,
        "lr_power": 0.0,
        "clip_grad_norm": 12.0,
        **AT_ONE_RATE,
    },
    "nnUNetTrainerMiT": {},
    "nnUNetTrainerMiTPaper": {
        "default_epochs": 100,
        "default_lr": 1e-4,
        "default_weight_decay": 3e-5,
        "warmup_fraction": 0.0,
        "clip_grad_norm": 12.0,
        **AT_ONE_RATE,
    },
    "nnUNetTrainerSETRPUP": {},
    "nnUNetTrainerSETRPUPPaper": {**MGCA, "frozen_fraction": 1.0},
    "nnUNetTrainerResNet50UNet": {},
    "nnUNetTrainerResNet50UNetPaper": MGCA,
    "nnUNetTrainerResUnet": {},
    "nnUNetTrainerMedNeXt": {
        "default_weight_decay": 3e-5,
        "warmup_fraction": 0.0,
        "clip_grad_norm": 12.0,
        **AT_ONE_RATE,
    },
    "nnUNetTrainerPrimus": {"default_lr": 3e-4},
    "nnUNetTrainerSwinUNETR": {},
    "nnUNetTrainerUNETR": {"default_lr": 1e-4},
    "nnUNetTrainerLinearProbe": {
        "default_epochs": 20,
        "default_iterations": 50,
        "default_lr": 1e-2,
        "default_weight_decay": 0.0,
        "default_deep_supervision": False,
        "frozen_fraction": 0.0,
    },
}


@pytest.fixture(autouse=True)
def short_epochs():
    """Not here."""


@pytest.mark.parametrize("name", MAIN_TRAINERS)
def test_demo(name):
    """Of its length; else the trainer's, as whose network's it is found and pickled."""
    trainer = getattr(import_module(CLASSES[demo_name(name)]), demo_name(name))
    demo = {"default_epochs": 12, "default_iterations": 20}
    assert {setting: getattr(trainer, setting) for setting in BASE} == {**BASE, **RECIPES[name], **demo}
    assert trainer.mro()[1].__name__ == name
    assert pickle.loads(pickle.dumps(trainer)) is trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_recipe(name):
    trainer = getattr(import_module(TRAINERS[name]), name)
    assert {setting: getattr(trainer, setting) for setting in BASE} == {**BASE, **RECIPES[name]}
    assert trainer.planners
    if "LinearProbe" not in name:
        family = name.removeprefix("nnUNetTrainer").removesuffix("Paper").removesuffix("Thesis")
        assert all(planner.startswith(f"nnUNetPlanner{family}") for planner in trainer.planners)


def test_base():
    assert {setting: getattr(TransformerTrainer, setting) for setting in BASE} == BASE
