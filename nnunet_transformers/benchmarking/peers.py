"""Other people's networks, as their own code configures them for a patch; none of the numbers is from here."""

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
# more than any patch needs: nnU-Net's planner keeps the patch that it is given
AMPLE_GB = 1e6


@dataclass(frozen=True)
class Peer:
    """A network to compare with.

    Attributes:
        build: makes it from patch size, input channels and classes, without deep supervision.
        dimensions: numbers of spatial axes that it is compared in.
    """

    build: Callable[[Sequence[int], int, int], nn.Module]
    dimensions: tuple[int, ...] = (2, 3)


def _planned(planner_class: type, patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """The network that one of nnU-Net's planners makes for isotropic images of the patch's size.

    Raises:
        ValueError: if it would plan another patch.
    """
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    dataset = {
        "channel_names": {str(c): "MRI" for c in range(input_channels)},
        "labels": {str(label): label for label in range(num_classes)},
        "dataset": {},
        "file_ending": ".nii.gz",
    }
    # a planner reads its dataset from nnU-Net's folders when it is made; its architecture needs none
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
        raise ValueError(f"nnU-Net plans no patch of {tuple(patch_size)} voxels; the nearest is {nearest}")
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
    """nnU-Net's default, of its ``ExperimentPlanner``."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    return _planned(ExperimentPlanner, patch_size, input_channels, num_classes)


def res_enc_l(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """The residual encoder U-Net of ``nnUNetPlannerResEncL`` (https://arxiv.org/abs/2404.09556)."""
    from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
        nnUNetPlannerResEncL,
    )

    return _planned(nnUNetPlannerResEncL, patch_size, input_channels, num_classes)


def _primus(trainer: str, patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """The network of one of nnU-Net's Primus trainers, drop path included (https://arxiv.org/abs/2503.01835)."""
    from nnunetv2.training.nnUNetTrainer.primus import primus_trainers

    configuration = SimpleNamespace(patch_size=tuple(patch_size))
    build = getattr(primus_trainers, trainer).build_network_architecture
    return build(None, configuration, input_channels, num_classes, enable_deep_supervision=False)


def primus_s(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Primus-S of ``nnUNet_Primus_S_Trainer``."""
    return _primus("nnUNet_Primus_S_Trainer", patch_size, input_channels, num_classes)


def primus_v3_s(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """Primus-V3-S of ``nnUNet_PrimusV3S_Trainer``.

    Raises:
        ModuleNotFoundError: if dynamic_network_architectures is a version from before it.
    """
    from dynamic_network_architectures.architectures import primus

    if not hasattr(primus, "PrimusV3S"):
        raise ModuleNotFoundError("needs a newer dynamic_network_architectures: pip install -U it")
    return _primus("nnUNet_PrimusV3S_Trainer", patch_size, input_channels, num_classes)


def _check_monai() -> None:
    if find_spec("monai") is None:
        raise ModuleNotFoundError('needs MONAI: pip install "monai>=1.5", or this package with [benchmark]')


def swin_unetr(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """MONAI's SwinUNETR with the published 48 features (https://arxiv.org/abs/2201.01266).

    Raises:
        ModuleNotFoundError: without MONAI.
    """
    _check_monai()
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(input_channels, num_classes, feature_size=48, spatial_dims=len(patch_size))


def unetr(patch_size: Sequence[int], input_channels: int, num_classes: int) -> nn.Module:
    """MONAI's UNETR with its defaults, which are the published ViT-B/16 (https://arxiv.org/abs/2103.10504).

    Raises:
        ModuleNotFoundError: without MONAI.
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
