"""nnU-Net's transforms on a GPU: the results are the worker's, and every tensor is where its operation takes it."""

from __future__ import annotations

from copy import deepcopy
from inspect import signature

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_transformers.trainers.device_augmentation import augment
from nnunet_transformers.trainers.device_transforms import OnHost, on_device
from tests.fake_cuda import CUDA, requires_cuda_build

from .conftest import CPU

DEVICES = [CPU, *([CUDA] if torch.cuda.is_available() else [])]
same_rules = pytest.mark.skipif(
    "seg_tiebreak" not in signature(SpatialTransform).parameters, reason="the worker's rules are those of 0.3.6"
)
# crop, patch, options of nnU-Net's transforms, segmentations of a sample
FORMS = {
    "3d": ((20, 22, 24), (12, 16, 14), {}, 1),
    "2d": ((40, 36), (24, 32), {}, 1),
    "anisotropic": ((4, 30, 32), (4, 20, 24), {"do_dummy_2d_data_aug": True}, 1),
    "regions": ((30, 32), (20, 24), {"regions": [(1, 2), 2], "ignore_label": 3, "use_mask_for_norm": [True, False]}, 1),
    "cascade": ((20, 22, 24), (12, 16, 14), {"is_cascaded": True, "foreground_labels": [1, 2]}, 2),
}


def always(transform):
    """Let every part of a transform act on every channel."""
    for part in transform.transforms:
        if isinstance(part, RandomTransform):
            part.apply_probability = 1.1
            if hasattr(part.transform, "p_per_channel"):
                part.transform.p_per_channel = 1.1
        if isinstance(part, SpatialTransform):
            part.p_rotation = part.p_scaling = 1.0
    return transform


def is_noise(part):
    return isinstance(part, RandomTransform) and isinstance(part.transform, GaussianNoiseTransform)


def form(name):
    """nnU-Net's transforms and a batch of two crops."""
    crop, patch_size, options, segmentations = FORMS[name]
    ndim = len(patch_size)
    scales = [[1 / 2**level] * ndim for level in range(2)]
    options = {"do_dummy_2d_data_aug": False, **options}
    transforms = nnUNetTrainer.get_training_transforms(patch_size, (-0.5, 0.5), scales, tuple(range(ndim)), **options)
    # blobs of four labels, with a border that the crop added
    labels = torch.randint(0, 4, (2, segmentations, *(n // 4 + 1 for n in crop)))
    for axis in range(2, 2 + ndim):
        labels = labels.repeat_interleave(4, axis).narrow(axis, 0, crop[axis - 2])
    labels = labels.to(torch.int16)
    labels[:, :, :2] = -1
    return transforms, {"data": torch.randn(2, 2, *crop), "target": labels, "keys": ["a", "b"]}


def in_worker(batch, transforms):
    """As nnU-Net's loader does with each of its crops."""
    samples = [transforms(image=i, segmentation=s) for i, s in zip(batch["data"], batch["target"], strict=True)]
    target = [torch.stack(level) for level in zip(*(s["segmentation"] for s in samples), strict=True)]
    return {**batch, "data": torch.stack([s["image"] for s in samples]), "target": target}


def seeded(seed, function, *arguments):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return function(*deepcopy(arguments))


@same_rules
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_equals_the_workers(name, device):
    by_chance, batch = form(name)
    if device != CPU:  # which draws another noise
        by_chance.transforms = [part for part in by_chance.transforms if not is_noise(part)]
    for seed, transforms in enumerate((always(deepcopy(by_chance)), by_chance, by_chance, by_chance)):
        expected = seeded(seed, in_worker, batch, transforms)
        found = seeded(seed, augment, batch, on_device(transforms, device), device)
        torch.testing.assert_close(found["data"].cpu(), expected["data"], rtol=1e-4, atol=1e-4)
        assert [t.dtype for t in found["target"]] == [t.dtype for t in expected["target"]]
        # where labels tie, rounding decides
        for ours, theirs in zip(found["target"], expected["target"], strict=True):
            assert ours.shape == theirs.shape
            assert (ours.cpu() != theirs).float().mean() < 1e-3
        assert found["keys"] == batch["keys"]


@same_rules
@pytest.mark.parametrize("tiebreak", ["nearest", "lowest", "highest"])
@pytest.mark.parametrize("border", ["zeros", "constant", "border", "reflection"])
def test_labels_by_any_rule(border, tiebreak):
    """A shift by half a voxel puts every voxel at a border between two or more labels."""
    options = {"border_mode_seg": border, "padding_value_seg": -1, "seg_tiebreak": tiebreak}
    transform = SpatialTransform((12, 12), 0, False, p_scaling=1, scaling=(1.0, 1.0), **options)
    labels = torch.randint(0, 4, (2, 9, 9), dtype=torch.int16)
    data = {"image": torch.randn(1, 9, 9), "segmentation": labels}
    expected = transform(**data)["segmentation"]
    found = on_device(transform, CPU)(**data)["segmentation"]
    assert torch.equal(found, expected)
    assert len(expected.unique()) >= 4


def test_elastic_deformation():
    transform = SpatialTransform(
        (12, 14),
        0,
        False,
        p_elastic_deform=1,
        elastic_deform_magnitude=(2, 3),
        p_rotation=0.5,
        rotation=(-1, 1),
    )
    data = {"image": torch.randn(1, 20, 20), "segmentation": torch.ones(1, 20, 20, dtype=torch.int16)}
    for seed in range(3):
        expected = seeded(seed, lambda d: transform(**d), data)["image"]
        found = seeded(seed, lambda d: on_device(transform, CPU)(**d), data)["image"]
        torch.testing.assert_close(found, expected)


class FakeDevice(TorchDispatchMode):
    """Tensors on the host are real, as parameters are read from them; those on the device are fake.

    Attributes:
        waits: operations at which the host waits for the device.
    """

    def __init__(self):
        super().__init__()
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if kwargs.get("device") != CUDA and not any(t.device == CUDA for t in tensors):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits.append("item")
            return 1
        if func is torch.ops.aten._unique2.default:
            self.waits.append("unique")
            return args[0].new_empty(4), args[0].new_empty(0, dtype=torch.long), args[0].new_empty(0, dtype=torch.long)
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == CPU:
            self.waits.append("copy")
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        with self.fakes:
            return func(*args, **kwargs)


@requires_cuda_build
@pytest.mark.parametrize("name", ["3d", "anisotropic", "regions"])  # parts of a cascade's act on the host
def test_tensors_are_on_the_device(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)  # there is no driver
    transforms, batch = form(name)
    with FakeDevice() as device:
        moved = {**batch, **{key: batch[key].to(CUDA) for key in ("data", "target")}}
        result = augment(moved, on_device(always(transforms), CUDA), CUDA)
    expected = in_worker(batch, transforms)
    assert {t.device for t in (result["data"], *result["target"])} == {CUDA}
    for found, other in zip((result["data"], *result["target"]), (expected["data"], *expected["target"]), strict=True):
        assert (found.shape, found.dtype) == (other.shape, other.dtype)
    # the labels of each sample, which are interpolated one by one
    assert set(device.waits) == {"unique", "item"}
    assert device.waits.count("unique") == 2


def test_others_act_on_the_host():
    class Mine(GaussianNoiseTransform):
        pass

    transform = on_device(ComposeTransforms([Mine(), RandomTransform(Mine(), 0.5)]), CPU)
    assert isinstance(transform.transforms[0], OnHost)
    assert isinstance(transform.transforms[1].transform, OnHost)
