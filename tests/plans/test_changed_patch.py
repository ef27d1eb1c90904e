"""The network of a configuration whose patch was changed in the plan."""

from __future__ import annotations

import json

import pytest
import torch

from nnunet_transformers.architectures.layers import WindowPartition
from nnunet_transformers.plans.changed_patch import architecture_for_patch
from nnunet_transformers.plans.mit import nnUNetPlannerMiT7
from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.plans.presets import get_preset
from nnunet_transformers.plans.qt_unet import nnUNetPlannerQTUNetT
from nnunet_transformers.plans.resnet_unet import nnUNetPlannerResNet50UNet
from nnunet_transformers.plans.setr_pup import nnUNetPlannerSETRPUP
from nnunet_transformers.plans.unet2022 import nnUNetPlannerUNet2022T

from .test_planner import plan

DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}}


@pytest.fixture
def planned(nnunet_folders, monkeypatch):
    """Plan with a planner, without tracing memory."""
    monkeypatch.setattr(TransformerPlanner, "_peak_bytes", lambda *args: (0, args[-1] * 10**9))

    def make(planner, spacing=(1, 1, 1), shape=(160, 160, 160)):
        return plan(nnunet_folders, planner, spacing, shape)

    return make


def network(plans, configuration):
    with torch.device("meta"):
        return PlannedConfiguration(plans, DATASET, configuration).build_network(deep_supervision=True)


@pytest.mark.parametrize("by", ["edit", "inheritance"])
@pytest.mark.parametrize(
    "planner,configuration,patch_size",
    [
        (nnUNetPlannerQTUNetT, "3d_fullres", [160, 96, 64]),
        (nnUNetPlannerUNet2022T, "2d", [256, 224]),
        (nnUNetPlannerUNet2022T, "3d_fullres", [96, 128, 160]),
        (nnUNetPlannerMiT7, "3d_fullres", [96, 128, 160]),
        (nnUNetPlannerSETRPUP, "2d", [96, 208]),
        (nnUNetPlannerResNet50UNet, "2d", [96, 224]),
    ],
)
def test_network_is_built_for_it(planned, planner, configuration, patch_size, by):
    plans = planned(planner)
    before = json.dumps(plans)
    was = network(plans, configuration)
    if by == "edit":
        plans["configurations"][configuration]["patch_size"] = patch_size
    else:
        plans["configurations"]["changed"] = {"inherits_from": configuration, "patch_size": patch_size}
        configuration = "changed"
    changed = network(plans, configuration)
    assert list(changed.patch_size) == patch_size != list(was.patch_size)
    assert changed.strides == was.strides
    for partition in (m for m in changed.modules() if isinstance(m, WindowPartition)):
        assert not partition.has_padding
    with torch.device("meta"), torch.no_grad():
        assert list(changed(torch.empty(1, 1, *patch_size))[0].shape[2:]) == patch_size
    # the plan itself stays as it was read
    assert json.dumps(plans["configurations"]["2d"]["architecture"]) in before


def test_windows_are_those_of_the_planner(planned):
    """Its rule, the published one of UNet-2022, and the spacing decide."""
    plans = planned(nnUNetPlannerUNet2022T, shape=(320, 320, 320))
    plans["configurations"]["2d"]["patch_size"] = [224, 224]
    arguments = PlannedConfiguration(plans, DATASET, "2d").configuration.network_arch_init_kwargs
    assert arguments["window_sizes"] == [[7, 7], [7, 7], [14, 14], [7, 7]]
    plans = planned(nnUNetPlannerQTUNetT, spacing=(3, 1, 1), shape=(48, 160, 160))
    configuration = plans["configurations"]["3d_fullres"]
    planned_windows = configuration["architecture"]["arch_kwargs"]["window_sizes"]
    other = [2 * n for n in configuration["patch_size"]]
    there = architecture_for_patch({**configuration, "patch_size": other}, "nnUNetPlannerQTUNetT")
    there["arch_kwargs"]["patch_size"] = other
    back = architecture_for_patch({**configuration, "architecture": there}, "nnUNetPlannerQTUNetT")
    assert back["arch_kwargs"]["window_sizes"] == planned_windows


def test_published_windows_are_kept():
    """They pad the grids of the published patch, and so those of another."""
    preset = get_preset("brats2021-tiny")
    arguments = preset.network_arguments(4, 4)
    configuration = {
        "patch_size": [n // 2 for n in preset.patch_size],
        "spacing": [1.0, 1.0, 1.0],
        "architecture": {"arch_kwargs": arguments},
    }
    changed = architecture_for_patch(configuration, preset.planner)["arch_kwargs"]
    assert changed == {**arguments, "patch_size": configuration["patch_size"]}


@pytest.mark.parametrize("planner,step", [(nnUNetPlannerQTUNetT, 32), (nnUNetPlannerResNet50UNet, 32)])
def test_patch_that_the_strides_do_not_divide(planned, planner, step):
    plans = planned(planner)
    configuration = list(plans["configurations"])[-1]
    plans["configurations"][configuration]["patch_size"][0] = 100
    message = (
        rf"{plans['plans_name']}, {configuration}: patch_size was changed from .* \(architecture.arch_kwargs\) to "
        rf"\[100, .*\] \(configuration\), .* total stride of {step} does not divide; nearest valid sizes: 96 or 128"
    )
    with pytest.raises(ValueError, match=message):
        network(plans, configuration)


def test_networks_of_others_are_left_alone():
    arguments = {"patch_size": [16, 16, 16], "depth": 12}  # of a token
    configuration = {"patch_size": [96, 96, 96], "spacing": [1, 1, 1], "architecture": {"arch_kwargs": arguments}}
    assert architecture_for_patch(configuration, None) is configuration["architecture"]
