"""Training in bfloat16 or float32, as far as it can be tested without a GPU."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetT
from nnunet_transformers.plans.stored_data import StoredData
from nnunet_transformers.trainers.precision import in_float32
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet
from tests.plans.test_planner import plan

CUDA = torch.device("cuda")


@pytest.fixture
def trainer(nnunet_folders, monkeypatch):
    """Makes a trainer for CUDA, of a plan with this entry for the type."""
    monkeypatch.setattr(TransformerPlanner, "_peak_bytes", lambda *args: (0, args[-1] * 10**9))
    plans = plan(nnunet_folders, nnUNetPlannerQTUNetT, (1, 1, 1), (40, 40, 40))
    dataset = json.loads((nnunet_folders / "raw" / plans["dataset_name"] / "dataset.json").read_text())

    def make(dtype, is_supported=True, device=CUDA):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_supported)
        if dtype is not None:
            plans["configurations"]["3d_fullres"]["autocast_dtype"] = dtype
        return nnUNetTrainerQTUNet({**plans, "continue_training": False}, "3d_fullres", 0, dataset, device)

    return make


@pytest.mark.parametrize("planned,used", [(None, torch.float16), ("bfloat16", torch.bfloat16), ("float32", None)])
def test_autocast_and_scaler(trainer, planned, used, monkeypatch):
    seen = []

    def step(self, *_):
        seen.append(torch.get_autocast_dtype("cuda"))
        return {"loss": 1.0}

    for name in ("train_step", "validation_step", "perform_actual_validation"):
        monkeypatch.setattr(nnUNetTrainer, name, step)
    for name in ("check_presence", "check_content"):  # the dataset has only a fingerprint
        monkeypatch.setattr(StoredData, name, lambda self: None)
    trainer = trainer(planned)
    trainer.lr_scheduler, trainer.network = Mock(), torch.nn.Identity()
    batch = {"target": torch.zeros(1, 1, 2, 2, 2), "keys": ["case"]}
    assert trainer.train_step(batch) == trainer.validation_step(batch)
    trainer.perform_actual_validation()
    # of float32 autocast knows nothing, and the network leaves it
    assert seen == [used or torch.float16] * 3
    assert torch.get_autocast_dtype("cuda") == torch.float16
    assert (trainer.grad_scaler is None) == (used is not torch.float16)


def test_gpu_without_it_is_an_error(trainer, monkeypatch):
    """Without any GPU the trainer says that, later on."""
    trainer("bfloat16", is_supported=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match=r"bfloat16, which this GPU does not have.*remove autocast_dtype"):
        trainer("bfloat16", is_supported=False)
    # on CPU nnU-Net trains in float32 whatever the plan says
    trainer("bfloat16", is_supported=False, device=torch.device("cpu"))


def test_unknown_type_is_an_error(trainer):
    with pytest.raises(RuntimeError, match="must be float16 or bfloat16 or float32, got 'float8'"):
        trainer("float8")


def test_a_network_leaves_autocast():
    network = torch.nn.Linear(2, 2)
    in_float32(network, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.ones(1, 2)).dtype == torch.float32
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
