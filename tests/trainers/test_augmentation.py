"""Augmentation is nnU-Net's, or none; thin patches have it too."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.trainers.augmentation import Augments

from .conftest import CPU, PLANS, TRAINER

THIN = [(1, 16, 16), (2, 16, 16), (3, 16, 16), (16, 3, 2)]


def augment(trainer_class, size):
    """Forty augmented images of one image."""
    views = []
    torch.manual_seed(0)
    sample = {"image": torch.rand(1, *size), "segmentation": torch.zeros(1, *size, dtype=torch.int16)}
    transforms = trainer_class.get_training_transforms(size, (-0.5, 0.5), None, (0, 1, 2), size[0] < 4)
    for seed in range(40):
        torch.manual_seed(seed)
        np.random.seed(seed)
        views.append(transforms(**{name: tensor.clone() for name, tensor in sample.items()})["image"])
    return views


class TestThinPatches:
    def test_end_nnunets_training(self):
        """Once they do not, the blur need not be limited."""
        with pytest.raises(RuntimeError, match="Padding size should be less"):
            augment(nnUNetTrainer, (2, 16, 16))

    @pytest.mark.parametrize("size", THIN)
    def test_are_augmented(self, size):
        assert all(view.shape == (1, *size) and view.isfinite().all() for view in augment(Augments, size))

    def test_others_are_augmented_as_by_nnunet(self):
        for view, expected in zip(*(augment(c, (4, 16, 16)) for c in (Augments, nnUNetTrainer)), strict=True):
            torch.testing.assert_close(view, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("augmentation", ["nnunet", "mirroring", "none"])
def test_patches_are_pieces_of_the_images_without_augmentation(prepared, augmentation, on_device):
    folder = prepared / "preprocessed" / "Dataset900_Balls"
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    plans["plans_name"] = f"{PLANS}_augmentation"
    settings = {"augmentation": augmentation, "augment_on_device": on_device}
    plans["configurations"]["3d_fullres"]["training"] = settings
    (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
    trainer = get_trainer_from_args("900", "3d_fullres", 0, TRAINER, plans["plans_name"], device=CPU)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    source = getattr(trainer.dataloader_train, "source", trainer.dataloader_train).data_loader
    batches = [next(trainer.dataloader_train) for _ in range(5)]
    assert tuple(batches[0]["data"].shape[2:]) == tuple(trainer.configuration_manager.patch_size)
    assert (trainer.inference_allowed_mirroring_axes is None) == (augmentation == "none")
    pieces = [
        (source._data.load_case(case)[0][:], data.numpy())
        for batch in batches
        for data, case in zip(batch["data"], batch["keys"], strict=True)
    ]
    assert all(np.isin(data, [*image.flat, 0]).all() for image, data in pieces) == (augmentation != "nnunet")
    # voxels that are neighbours of some voxel in the image, in its direction along the last axis
    in_order = [_pairs(data) <= _pairs(image) for image, data in pieces]
    assert all(in_order) == (augmentation == "none")


def _pairs(image):
    """Values of neighbours along the last axis, but for those of padding."""
    first, second = image[..., :-1].ravel(), image[..., 1:].ravel()
    inside = (first != 0) & (second != 0)
    return set(zip(first[inside].tolist(), second[inside].tolist(), strict=True))
