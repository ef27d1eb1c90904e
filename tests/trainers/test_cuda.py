"""From a plan to a trained step, validation and prediction on a GPU of fake tensors."""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from torch import Tensor

from nnunet_transformers.inference.predictor import BatchedPredictor
from tests.fake_cuda import CUDA, fake_cuda, requires_cuda_build

from .conftest import PLANNER
from .test_families import families_to_train

pytestmark = [
    requires_cuda_build,
    pytest.mark.usefixtures("prepared"),
    # the cache of a bias identifies its table by the address of the data
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]

QT_UNET = pytest.param(PLANNER, "nnUNetTrainerQTUNet", "3d_fullres", id="QTUNet-3d_fullres")
# one configuration of each trainer, in 3D if it has that: both read the same on the host
ONE_OF_EACH = {param.values[1]: param for param in [QT_UNET, *families_to_train()]}.values()


@contextmanager
def on_the_host():
    """Values that the host has read: zeros, as a fake tensor has none."""
    with patch.object(Tensor, "numpy", lambda tensor: np.zeros(tensor.shape, np.float32)):
        yield


def initialised(trainer, plans, configuration, monkeypatch):
    """A trainer with its network, optimiser and scaler on the GPU."""
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = get_trainer_from_args("900", configuration, 0, trainer, plans, device=CUDA)
    monkeypatch.setattr(trainer, "_check_device", lambda: None)  # the device is none
    trainer.initialize()
    # a scaler reads on the host whether a gradient is infinite
    monkeypatch.setattr(trainer.grad_scaler, "_maybe_opt_step", lambda optimizer, *_, **__: optimizer.step())
    return trainer


def batch_of(trainer):
    """A batch as the loader yields it, on the CPU."""
    patch_size, batch_size = trainer.configuration_manager.patch_size, trainer.configuration_manager.batch_size
    scales = trainer._get_deep_supervision_scales()
    sizes = [
        [round(n * s) for n, s in zip(patch_size, scale, strict=True)] for scale in scales or ([1] * len(patch_size),)
    ]
    targets = [torch.zeros(batch_size, 1, *size) for size in sizes]
    target = targets if scales else targets[0]
    data = torch.randn(batch_size, trainer.num_input_channels, *patch_size)
    return {"data": data, "target": target, "keys": ["case"] * batch_size}


@pytest.mark.parametrize("planner,name,configuration", ONE_OF_EACH)
def test_training_and_prediction(plan_with, monkeypatch, planner, name, configuration):
    plans = plan_with(planner)
    with fake_cuda() as device, on_the_host():
        trainer = initialised(name, plans, configuration, monkeypatch)
        batch = batch_of(trainer)
        trainer.on_train_epoch_start()
        device.waits.clear()
        trainer.train_step(batch)
        # image and targets go to the GPU, the loss comes back
        sent = 1 + (len(batch["target"]) if isinstance(batch["target"], list) else 1)
        assert device.waits == ["nnUNetTrainer.py train_step"] * (sent + 1)
        device.waits.clear()
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(batch)
        # the loss and three counts come back
        assert device.waits == ["nnUNetTrainer.py validation_step"] * (sent + 4)
        trainer.set_deep_supervision_enabled(False)
        # nnU-Net's loop around the tiles draws them in a thread, where tensors are not fake
        with patch("torch.cuda.is_available", lambda: True):
            predictor = BatchedPredictor(batch_size=4, device=CUDA, allow_tqdm=False)
        predictor.network = trainer.network
        predictor.allowed_mirroring_axes = (0,)
        patch_size = trainer.configuration_manager.patch_size
        slicers = [(slice(None), *(slice(start, start + n) for n in patch_size)) for start in (0, 1)]
        image = torch.randn(trainer.num_input_channels, *(n + 1 for n in patch_size), device=CUDA)
        device.waits.clear()
        with torch.inference_mode(), torch.autocast("cuda"):
            tiles = list(predictor._predict_tiles(image, slicers))
        assert [tile.shape[2:] for tile in tiles] == [tuple(patch_size)] * 2
        assert device.waits == []
