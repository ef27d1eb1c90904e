"""Plans that start from weights, of networks of others; whole trainings are in tests/trainers."""

from __future__ import annotations

import json

import torch

from nnunet_transformers.plans.planned import PlannedConfiguration
from nnunet_transformers.weights import InitialWeights
from nnunet_transformers.weights.attach import attach

LAYERS = {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "nonlin": "torch.nn.LeakyReLU"}
PLAN = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "Dataset004_Hippocampus",
    "configurations": {
        "3d_fullres": {
            "patch_size": [8, 8, 8],
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "architecture": {
                # of the networks that nnU-Net can plan the one that does not say where its encoder is
                "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualUNet",
                "arch_kwargs": {
                    "n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": 3, "strides": [1, 2],
                    "n_blocks_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True, **LAYERS,
                    "norm_op_kwargs": {"affine": True},
                },
                "_kw_requires_import": list(LAYERS),
            },
        }
    },
}  # fmt: skip


def test_a_network_that_does_not_say_where_its_encoder_is(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset004_Hippocampus"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    dataset_json = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "anterior": 1}}
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "nnUNetPlans.json").write_text(json.dumps(PLAN))
    network = PlannedConfiguration(PLAN, dataset_json, "3d_fullres").build_network()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    weights = InitialWeights.from_source(tmp_path / "weights.pth")
    path, reports, left = attach(weights, "Dataset004_Hippocampus", "nnUNetPlans", "Mine")
    assert not reports["3d_fullres"].fresh and not left
    assert json.loads(path.read_text())["configurations"]["3d_fullres"]["initialisation"] == weights.specification
