"""The gate for plans: what it lets through is what nnU-Net and its plugins plan, and nothing else is even imported."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib import import_module

import pytest

from nnunet_transformers import _declared, _plugins
from nnunet_transformers.plans.builder import find_trainer
from nnunet_transformers.plans.gate import check_plan, check_preparation
from nnunet_transformers.plans.planned import PlannedConfiguration
from tests.conftest import HOSTILE
from tests.test_stored_files import PLANS, STORED

PLANS_FILES = sorted((STORED / "plans").glob("*.json"))
OWN = "nnunet_transformers.architectures.qt_unet"
STOCK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
NETWORKS = [
    f"{HOSTILE}.Network",
    "torch.hub.load",
    "subprocess.Popen",
    f"{OWN}.torch.hub.load",
    f"{OWN}.nn.Sequential",
    f"{OWN}.QTUNet.__class__",
    f"{OWN}.NoSuchNetwork",
    "nnunet_transformers.architectures._registry.NetworkEntry",
    "nnunet_transformers.architectures.no_module.Network",
    "nnunet_transformers.cli.main",
    "nnunet_transformers.architectures_of_others.Network",
    "",
    None,
    7,
    ["torch.hub.load"],
]


def plan(**entries):
    """A plan of stock nnU-Net's, with other entries in its only configuration."""
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["CTNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_torch_fornnunet",
        "architecture": deepcopy(STOCK),
    }
    return {"image_reader_writer": "SimpleITKIO", "configurations": {"3d_fullres": {**configuration, **entries}}}


@pytest.mark.parametrize("path", PLANS_FILES, ids=lambda path: path.stem)
def test_own_plans_pass(path):
    assert PLANS
    check_plan(json.loads(path.read_text()), "the plan")


def test_stock_plans_pass():
    check_plan(plan(), "the plan")
    # nnU-Net's first format, and a configuration that inherits its network
    old = plan(UNet_class_name="PlainConvUNet")
    del old["configurations"]["3d_fullres"]["architecture"]
    old["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres"}
    check_plan(old, "the plan")


@pytest.mark.parametrize("name", NETWORKS, ids=str)
def test_networks(name, hostile):
    hostile_plan = plan(architecture={**STOCK, "network_class_name": name})
    with pytest.raises(ValueError, match=r"the plan names .* as network"):
        check_plan(hostile_plan, "the plan")


@pytest.mark.parametrize(
    "depths",
    [
        {"n_blocks_per_stage": [1, 10**5]},
        {"n_blocks_per_stage": [10**5, -(10**5)]},
        {"n_stages": 20, "n_conv_per_stage": 13},
        {"n_stages": 10**5},
        {"eva_depth": 257},
    ],
)
def test_networks_that_never_end(depths):
    architecture = deepcopy(STOCK)
    architecture["arch_kwargs"] |= depths
    with pytest.raises(ValueError, match=r"plans\.json describes a network with .* in all; at most 256"):
        check_plan(plan(architecture=architecture), "plans.json")


@pytest.mark.parametrize("layer", [f"{HOSTILE}.layer", "torch.load", "torch.nn.utils.skip_init", "webbrowser.open", 1])
def test_layers(layer, hostile):
    architecture = {**STOCK, "arch_kwargs": {"norm_op": layer}, "_kw_requires_import": ["norm_op"]}
    with pytest.raises(ValueError, match=r"the plan names .* as norm_op"):
        check_plan(plan(architecture=architecture), "the plan")


@pytest.mark.parametrize(
    "entry, name",
    [
        ("preprocessor_name", "load_pickle"),
        ("resampling_fn_data", "deepcopy"),
        ("resampling_fn_seg", ["resample_torch_fornnunet"]),
        ("resampling_fn_probabilities", "resample_\n; os"),
        ("normalization_schemes", ["ABC"]),
    ],
)
def test_names_in_nnunets_folders(entry, name):
    with pytest.raises(ValueError, match=f"the plan names .* as {entry}"):
        check_preparation(plan(**{entry: name}), "the plan")


@pytest.mark.parametrize("entry", ["image_reader_writer", "label_manager"])
def test_names_of_the_plan(entry):
    with pytest.raises(ValueError, match=f"the plan names 'load_json' as {entry}.*give --trust only if"):
        check_preparation({**plan(), entry: "load_json"}, "the plan")


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"configurations": None},
        {"configurations": {"2d": None}},
        plan(architecture={}),
        plan(architecture={**STOCK, "arch_kwargs": 3}),
        plan(architecture={**STOCK, "_kw_requires_import": 3}),
    ],
)
def test_no_plan(damaged):
    with pytest.raises(ValueError, match=r"the plan (is no plan|describes no network)"):
        check_plan(damaged, "the plan")


def test_every_builder_asks(hostile):
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    architecture = {**STOCK, "network_class_name": f"{HOSTILE}.Network"}
    hostile_plan = {**plan(architecture=architecture), "plans_name": "p", "dataset_name": "d"}
    planned = PlannedConfiguration(hostile_plan, dataset_json, "3d_fullres")
    with pytest.raises(ValueError, match=f"3d_fullres of the plan p names '{HOSTILE}.Network' as network"):
        planned.build_network()
    assert HOSTILE not in sys.modules
    # its module is imported, and only then found to have no such network
    with pytest.raises(ImportError, match="Network class could not be found"):
        planned.build_network(trust=True)
    assert hostile.exists()
    hostile.unlink()


def test_registered_and_declared(examples, monkeypatch):
    """A network that the user's own code has registered, or an installed package declares, is as good as ours."""
    architecture = {"network_class_name": "hybrid_unet.HybridUNet", "arch_kwargs": {}, "_kw_requires_import": []}
    with pytest.raises(ValueError, match=r"names 'hybrid_unet\.HybridUNet' as network"):
        check_plan(plan(architecture=architecture), "the plan")
    assert "hybrid_unet" not in sys.modules
    with monkeypatch.context() as context:
        context.setattr(_declared, "declared", lambda: ("hybrid_unet",))
        check_plan(plan(architecture=architecture), "the plan")
    sys.modules.pop("hybrid_unet")
    import_module("hybrid_unet")
    check_plan(plan(architecture=architecture), "the plan")


def test_packages_are_whole_names(hostile):
    assert _declared.find_class(f"{HOSTILE}.Thing", [HOSTILE[:-1]]) is None


def test_declared_by_an_installed_package(tmp_path, monkeypatch):
    metadata = tmp_path / "hybrid-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: hybrid\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nnunet_transformers]\nmethod = vicreg:VICReg\nnetwork = hybrid_unet\n")
    monkeypatch.syspath_prepend(tmp_path)
    _plugins.declarations.cache_clear()
    try:
        assert {"hybrid_unet", "vicreg.VICReg"} <= set(_declared.declared())
    finally:
        _plugins.declarations.cache_clear()


@pytest.mark.parametrize("name", ["join", "os", "nnUNetTrainer.__class__", 7])
def test_trainers_are_trainers(name):
    with pytest.raises(ValueError, match="does not find the trainer"):
        find_trainer(name)
