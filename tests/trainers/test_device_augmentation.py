"""Augmentation in the training's process: batches are nnU-Net's, one is ahead, and training takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.run.run_training import get_trainer_from_args

from nnunet_transformers.trainers.device_augmentation import DeviceLoader, full_precision

from .conftest import CPU, PLANS, TRAINER
from .test_device_transforms import same_rules

DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]

pytestmark = pytest.mark.usefixtures("prepared")


@pytest.fixture
def trainer_with(prepared):
    """A trainer of batches of one, of a plan with a setting or without."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"

    def create(configuration="3d_fullres", device=CPU, **settings):
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        plans["plans_name"] = f"{PLANS}_device"
        plans["configurations"][configuration]["training"] = settings
        plans["configurations"][configuration]["batch_size"] = 1
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
        trainer = get_trainer_from_args("900", configuration, 0, TRAINER, plans["plans_name"], device=device)
        trainer.initialize()
        return trainer

    return create


def loader_of(trainer):
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer.dataloader_train


def batches(loader, count=4):
    np.random.seed(0)
    torch.manual_seed(0)
    return [next(loader) for _ in range(count)]


@same_rules
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_batches_are_nnunets(trainer_with, configuration):
    theirs = loader_of(trainer_with(configuration))
    trainer = trainer_with(configuration, augment_on_device=True)
    ours = loader_of(trainer)
    assert isinstance(ours, DeviceLoader) and not isinstance(trainer.dataloader_val, DeviceLoader)
    for found, expected in zip(batches(ours), batches(theirs), strict=True):
        torch.testing.assert_close(found["data"], expected["data"], rtol=1e-4, atol=1e-4)
        for level, other in zip(found["target"], expected["target"], strict=True):
            assert level.dtype == other.dtype
            assert (level != other).float().mean() < 1e-3
        assert list(found["keys"]) == list(expected["keys"])


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_step_prepares_the_next_batch(trainer_with, device):
    trainer = trainer_with("2d", device=device, augment_on_device=True)
    loader = loader_of(trainer)
    trainer.on_train_epoch_start()
    ahead = []
    for _ in range(2):
        batch = next(loader)
        assert loader._next is None and batch["data"].device.type == device.type
        trainer.train_step(batch)
        ahead.append(loader._next)
    assert ahead[0] is batch  # of the second step
    loader.prefetch()  # as validation's loss does
    assert loader._next is ahead[1]


def test_the_processes_end_with_training(trainer_with, monkeypatch):
    trainer = trainer_with(augment_on_device=True)
    source = NonDetMultiThreadedAugmenter(None, None, 1)
    ended = []
    monkeypatch.setattr(source, "_finish", lambda **_: ended.append(True))
    trainer.dataloader_train, trainer.dataloader_val = DeviceLoader(source, torch.nn.Identity(), CPU), None
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *_: None)
    trainer.on_train_end()
    assert ended


def test_precision_is_the_cpus():
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
        assert not torch.backends.cudnn.allow_tf32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert torch.backends.cudnn.allow_tf32 == before
