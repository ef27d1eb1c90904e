"""Augmentation is nnU-Net's, or none; thin patches have it too."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_transformers.trainers import augmentation, label_order
from nnunet_transformers.trainers.augmentation import Augments
from nnunet_transformers.trainers.qt_unet import nnUNetTrainerQTUNet

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


@pytest.fixture
def configured(prepared):
    """Make a trainer with settings of a plan; returns the axes that training and prediction mirror."""
    folder = prepared / "preprocessed" / "Dataset900_Balls"

    def configure(configuration, data=None, **settings):
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        plans["plans_name"] = f"{PLANS}_axes"
        plans["configurations"][configuration]["training"] = settings
        if data:
            plans["configurations"][configuration]["data_identifier"] = data
        (folder / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
        trainer = get_trainer_from_args("900", configuration, 0, TRAINER, plans["plans_name"], device=CPU)
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        mirrored = [t for t in loader.data_loader.transforms.transforms if isinstance(t, MirrorTransform)]
        return [t.allowed_axes for t in mirrored], trainer.inference_allowed_mirroring_axes

    return configure


class TestMirrorAxes:
    @pytest.mark.parametrize(
        ("settings", "training", "prediction"),
        [
            ({}, [(0, 1, 2)], (0, 1, 2)),
            ({"mirror_axes": [2, 0]}, [(0, 2)], (0, 2)),
            ({"mirror_axes": [1], "augmentation": "mirroring"}, [(1,)], (1,)),
            ({"mirror_axes": [1], "mirroring": False}, [(1,)], None),
            ({"mirror_axes": []}, [], None),
            ({"mirror_axes": [1], "augmentation": "none"}, [], None),
        ],
    )
    def test_that_a_plan_states(self, configured, settings, training, prediction):
        assert configured("3d_fullres", **settings) == (training, prediction)

    def test_that_a_slice_does_not_have(self, configured):
        with pytest.raises(RuntimeError, match=r"mirror_axes has axis 2, but the axes of the patch are 0 to 1\. Corr"):
            configured("2d", mirror_axes=[1, 2])

    @pytest.mark.parametrize(
        ("configuration", "ordered", "mirrored"),
        [("3d_fullres", 0, (1, 2)), ("3d_fullres", 2, (0, 1)), ("2d", 0, (0, 1)), ("2d", 1, (1,)), ("2d", 2, (0,))],
    )
    def test_along_which_labels_have_no_order(
        self, configured, prepared, monkeypatch, configuration, ordered, mirrored
    ):
        """Label 2 lies four voxels behind label 1 along an axis, in one of the cases three.

        All five cases count, so that all folds mirror alike.
        """
        monkeypatch.setattr(label_order, "FEWEST_CASES", 5)
        folder = prepared / "preprocessed" / "Dataset900_Balls"
        data = folder / f"ordered_{configuration}"
        shutil.copytree(folder / f"nnUNetPlans_{configuration}", data, dirs_exist_ok=True)
        for number, path in enumerate(sorted(data.glob("*.pkl"))):
            properties = pickle.loads(path.read_bytes())
            voxels = np.array([[0, 5, 5, 5], [0, 6, 6, 6]])
            behind = voxels + 0
            behind[:, 1 + ordered] += 3 + (number > 0)
            properties["class_locations"] = {1: voxels, 2: behind}
            path.write_bytes(pickle.dumps(properties))
        assert configured(configuration, data.name, mirror_axes="unordered") == ([mirrored], mirrored)

    @pytest.mark.parametrize(
        ("size", "axes", "degrees"),
        [
            ((24, 20), None, 180),
            ((24, 20), [0, 1], 180),
            ((24, 20), [1], 30),
            ((24, 20), [], 30),
            ((40, 20), [1], 15),
            ((20, 24, 20), [1], 30),
            ((4, 24, 20), None, 180),
            ((4, 24, 20), [1, 2], 180),
            ((4, 24, 20), [0, 1], 30),
        ],
    )
    def test_a_plane_keeps_its_direction(self, prepared, size, axes, degrees):
        """A turn by 180 degrees mirrors two axes, and patches are turned in the plane alone where slices are thick."""
        folder = prepared / "preprocessed" / "Dataset900_Balls"
        plans = json.loads((folder / f"{PLANS}.json").read_text())
        configuration = "2d" if len(size) == 2 else "3d_fullres"
        plans["configurations"][configuration] |= {"patch_size": size, "training": {"mirror_axes": axes}}
        dataset_json = json.loads((folder / "dataset.json").read_text())
        plans["continue_training"] = False  # as nnUNetv2_train adds
        trainer = nnUNetTrainerQTUNet(plans, configuration, 0, dataset_json, CPU)
        rotation, in_plane, *_ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert np.rad2deg(rotation) == pytest.approx([-degrees, degrees])
        assert in_plane == (size[0] == 4)

    def test_of_many_cases_some_are_read(self, configured, prepared, monkeypatch):
        """Of five cases three, from the first to the last."""
        read = []
        monkeypatch.setattr(augmentation, "ORDER_CASES", 3)
        monkeypatch.setattr(augmentation, "ordered_axes", lambda centres: read.extend(centres) or {})
        monkeypatch.setattr(augmentation, "label_centres", lambda properties: properties["class_locations"][1].tolist())
        configured("3d_fullres", mirror_axes="unordered")
        data = sorted((prepared / "preprocessed" / "Dataset900_Balls" / "nnUNetPlans_3d_fullres").glob("*.pkl"))
        assert len(data) == 5
        assert read == [pickle.loads(path.read_bytes())["class_locations"][1].tolist() for path in data[::2]]

    def test_of_few_cases(self, configured, prepared):
        assert configured("3d_fullres", mirror_axes="unordered") == ([(0, 1, 2)], (0, 1, 2))


def _pairs(image):
    """Values of neighbours along the last axis, but for those of padding."""
    first, second = image[..., :-1].ravel(), image[..., 1:].ravel()
    inside = (first != 0) & (second != 0)
    return set(zip(first[inside].tolist(), second[inside].tolist(), strict=True))
