"""A planned configuration: channels, heads, network and planner from dataset and plan."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments
from torch.nn import Conv3d

from nnunet_transformers.plans.builder import find_trainer
from nnunet_transformers.plans.planned import PlannedConfiguration, channel_names

from ..conftest import write_dataset

QTUNET = "nnunet_transformers.architectures.qt_unet.QTUNet"


@pytest.fixture
def planned(nnunet_folders):
    write_dataset(nnunet_folders / "raw", channels=2)
    extract_fingerprints([900], num_processes=1)
    plan_experiments([900], "nnUNetPlannerResEncM", 8, overwrite_plans_name="nnUNetPlans_other")
    return nnunet_folders / "preprocessed" / "Dataset900_Balls"


def test_channels_in_the_order_of_their_numbers():
    names = {str(number): f"channel {number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert channel_names({"channel_names": names}) == [f"channel {number}" for number in range(11)]
    assert channel_names({"modality": {"0": "CT"}}) == ["CT"]
    with pytest.raises(KeyError):
        channel_names({"labels": {}})


def test_network_and_planner_are_the_plans(planned):
    configuration = PlannedConfiguration.load("900", "nnUNetPlans_other", "3d_fullres")
    # the plan's own word, not a guess from its name
    assert configuration.planner == "nnUNetPlannerResEncM"
    assert (configuration.input_channels, configuration.num_classes) == (2, 3)
    network = configuration.build_network()
    assert next(m for m in network.modules() if isinstance(m, Conv3d)).in_channels == 2
    assert network.decoder.seg_layers[-1].out_channels == 3


def test_nnunet_does_not_change_the_plan(planned):
    configuration = PlannedConfiguration.load("900", "nnUNetPlans_other", "3d_fullres")
    before = json.dumps(configuration.plans)
    configuration.manager.plans["dataset_name"] = "another"
    configuration.configuration.configuration["batch_size"] = 99
    assert json.dumps(configuration.plans) == before


def test_what_is_missing_is_named(planned):
    with pytest.raises(ValueError, match="nnUNetPlans_other has no 3d_lowres; it has 2d, 3d_fullres"):
        PlannedConfiguration.load("900", "nnUNetPlans_other", "3d_lowres")
    with pytest.raises(FileNotFoundError, match=r"Plans of Dataset900_Balls: nnUNetPlans_other$"):
        PlannedConfiguration.load("900", "nnUNetQTUNetTPlans_other", "3d_fullres")
    (planned / "nnUNetPlans_other.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"Plans of Dataset900_Balls: none; plan the dataset first$"):
        PlannedConfiguration.load("900", "nnUNetPlans_other", "3d_fullres")
    with pytest.raises(FileNotFoundError, match="nnUNetv2_plan_experiment -d 900 -pl nnUNetPlannerQTUNetT`"):
        PlannedConfiguration.load("900", "nnUNetQTUNetTPlans", "3d_fullres")
    with pytest.raises(ValueError, match="does not find the trainer nnUNetTrainerOfNobody"):
        find_trainer("nnUNetTrainerOfNobody")


@pytest.mark.parametrize("architecture", [None, "QTUNet", {}, {"network_class_name": QTUNET, "arch_kwargs": None}])
def test_plan_without_a_network(architecture):
    """Of any wrong type, as a file that was edited by hand may have it."""
    configuration = {"patch_size": [32, 32, 32], "architecture": architecture}
    planned = PlannedConfiguration({"plans_name": "P", "configurations": {"2d": configuration}}, {}, "2d")
    with pytest.raises(ValueError, match=r"^P, 2d: describes no network that can be built \(.*\); plan again$"):
        _ = planned.configuration


@pytest.mark.parametrize(
    "entries",
    [{"inherits_from": "3d"}, {"inherits_from": "2d"}, {"patch_size": [32, 32]}, None],
    ids=["of_none", "of_itself", "of_nothing", "none"],
)
def test_configuration_that_inherits_no_network(entries):
    planned = PlannedConfiguration({"plans_name": "P", "configurations": {"2d": entries}}, {}, "2d")
    with pytest.raises(ValueError, match=r"^P, 2d: "):
        _ = planned.configuration


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"n_conv_per_stage": [1, 1, 1]}, "n_conv_per_stage must have as many entries"),
        ({"convbias": True}, "unexpected keyword argument 'convbias'"),
        ({"strides": [1, "2"]}, "str"),
    ],
)
def test_arguments_that_make_no_network(changes, reason):
    """Of nnU-Net's CNN, as where they were edited by hand."""
    arguments = {
        **{"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": 3, "strides": [1, 2], "n_conv_per_stage": 1},
        **{"n_conv_per_stage_decoder": 1, "conv_op": "torch.nn.Conv2d", **changes},
    }
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    architecture = {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": ["conv_op"]}
    configuration = {"patch_size": [32, 32], "normalization_schemes": [""], "architecture": architecture}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    plans = {"plans_name": "P", "dataset_name": "D", "configurations": {"2d": configuration}}
    with pytest.raises(ValueError, match=rf"network of P, 2d, for the patch \[32, 32\]: .*{reason}.*correct the plan"):
        PlannedConfiguration(plans, dataset_json, "2d").build_network()


def test_configuration_stays_the_one_that_was_read():
    """What is derived from its name is kept."""
    planned = PlannedConfiguration({"plans_name": "P", "configurations": {"2d": {}}}, {}, "2d")
    with pytest.raises(FrozenInstanceError):
        planned.name = "3d_fullres"
