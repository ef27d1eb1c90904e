"""Peers: networks of other packages, configured for a patch by their own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

from .._atomic import write_json

DATASET = "Dataset001_Benchmark"
# more memory than any patch needs, so that nnU-Net's planner keeps the patch
AMPLE_GB = 1e6
# the first timm that dynamic-network-architectures excludes
TIMM_LIMIT = "1.0.23"


@dataclass(frozen=True)
class Peer:
    """A network to compare with.

    Attributes:
        build: builds the network from patch size, input channels and classes, without deep supervision.
        dimensions: numbers of spatial axes with which it is compared.
    """

    build: Callable[[Sequence[int], int, int], nn.Module]
    dimensions: tuple[int, ...] = (2, 3)


def _planned(planner_class: type, patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build the network that a planner of nnU-Net plans for isotropic images of the patch's size.

    Raises:
        ValueError: if the planner plans another patch.
    """
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    dataset = {
        "channel_names": {str(c): "MRI" for c in range(input_channels)},
        "labels": {str(label): label for label in range(num_classes)},
        "dataset": {},
        "file_ending": ".nii.gz",
    }
    # the planner's constructor reads a dataset from nnU-Net's folders, on which the architecture does not depend
    with (
        TemporaryDirectory() as folder,
        patch.multiple(default_experiment_planner, nnUNet_raw=folder, nnUNet_preprocessed=folder),
        torch.device("meta"),
    ):
        (Path(folder) / DATASET).mkdir()
        write_json(dataset, Path(folder) / DATASET / "dataset.json")
        write_json({"median_relative_size_after_cropping": 1.0}, Path(folder) / DATASET / "dataset_fingerprint.json")
        planner = planner_class(DATASET)
        planner.UNet_vram_target_GB = AMPLE_GB
        plan = planner.get_plans_for_configuration((1.0,) * len(patch_size), tuple(patch_size), "", 1.0, {})
    if tuple(plan["patch_size"]) != tuple(patch_size):
        nearest = ",".join(str(int(n)) for n in plan["patch_size"])
        raise ValueError(f"nnU-Net plans no patch of {tuple(patch_size)} voxels; use --patch-size {nearest}")
    architecture = plan["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels,
        num_classes,
        deep_supervision=False,
    )


def plain_conv_unet(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build nnU-Net's default network, planned by ``ExperimentPlanner``."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    return _planned(ExperimentPlanner, patch_size, input_channels, num_classes)


def res_enc_l(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build the residual encoder U-Net of ``nnUNetPlannerResEncL`` (https://arxiv.org/abs/2404.09556)."""
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        nnUNetPlannerResEncL,
    )

    return _planned(nnUNetPlannerResEncL, patch_size, input_channels, num_classes)


def _primus(trainer: str, patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build the network of one of nnU-Net's Primus trainers, drop path included (https://arxiv.org/abs/2503.01835).

    Raises:
        ValueError: if timm is too new for it.
    """
    import timm
    from nnunetv2.training.nnUNetTrainer.primus import primus_trainers
    from packaging.version import Version

    if Version(timm.__version__) >= Version(TIMM_LIMIT):
        # its rotary embeddings of three axes do not fit into newer timm's buffer
        raise ValueError(
            f"dynamic-network-architectures' Primus needs timm < {TIMM_LIMIT}, here is {timm.__version__}: "
            f"pip install 'timm<{TIMM_LIMIT}', or measure ours, primus_v3_s"
        )
    configuration = SimpleNamespace(patch_size=tuple(patch_size))
    build = getattr(primus_trainers, trainer).build_network_architecture
    return build(None, configuration, input_channels, num_classes, enable_deep_supervision=False)


def primus_s(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build Primus-S as ``nnUNet_Primus_S_Trainer`` does."""
    return _primus("nnUNet_Primus_S_Trainer", patch_size, input_channels, num_classes)


def primus_v3_s(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build Primus-V3-S as ``nnUNet_PrimusV3S_Trainer`` does.

    Raises:
        ModuleNotFoundError: if the installed dynamic_network_architectures lacks it.
    """
    from dynamic_network_architectures.architectures import primus

    if not hasattr(primus, "PrimusV3S"):
        raise ModuleNotFoundError("PrimusV3-S needs a newer version: pip install -U dynamic_network_architectures")
    return _primus("nnUNet_PrimusV3S_Trainer", patch_size, input_channels, num_classes)


def _check_monai() -> None:
    if find_spec("monai") is None:
        raise ModuleNotFoundError("MONAI is not installed: pip install 'nnunet-transformers[benchmark]'")


def swin_unetr(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build MONAI's SwinUNETR with the published 48 features (https://arxiv.org/abs/2201.01266).

    Raises:
        ModuleNotFoundError: if MONAI is not installed.
    """
    _check_monai()
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(input_channels, num_classes, feature_size=48, spatial_dims=len(patch_size))


def unetr(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Build MONAI's UNETR with its defaults, the published ViT-B/16 (https://arxiv.org/abs/2103.10504).

    Raises:
        ModuleNotFoundError: if MONAI is not installed.
    """
    _check_monai()
    from monai.networks.nets import UNETR

    return UNETR(input_channels, num_classes, img_size=tuple(patch_size), spatial_dims=len(patch_size))


PEERS = {
    "PlainConvUNet": Peer(plain_conv_unet),
    "ResEnc-L": Peer(res_enc_l),
    "Primus-S": Peer(primus_s, (3,)),
    "PrimusV3-S": Peer(primus_v3_s, (3,)),
    "SwinUNETR": Peer(swin_unetr),
    "UNETR": Peer(unetr, (3,)),
}
