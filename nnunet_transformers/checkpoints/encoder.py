"""Encoder checkpoints: what pretraining writes and every trainer here, and nnssl's readers, can start from.

One file of tensors and plain types, read without unpickling. It is an nnssl checkpoint (``network_weights`` and
``nnssl_adaptation_plan``) with an entry ``encoder`` that says what the weights are of, and their hash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..architectures import SegmentationNetwork, create_network, get_network
from .files import load_checkpoint
from .sealed import WrongKindError, load_sealed, save_sealed

KIND = "encoder"
PACKAGES = ("nnunet-transformers", "nnunetv2", "torch", "timm")


def package_versions() -> dict[str, str]:
    """Versions of what made a checkpoint."""
    return {name: version(name) for name in PACKAGES}


@dataclass(frozen=True)
class EncoderCheckpoint:
    """Weights of stem and encoder and all that is known of them.

    Attributes:
        weights: by the names of the network.
        name: registered network.
        overrides: its arguments beyond the registered ones.
        patch_size: voxels per axis of the crops that it was trained on.
        input_channels: image channels.
        spacing: mm per voxel and axis of the training images; None where they had different ones.
        normalization: nnU-Net's scheme for each channel.
        method: pretraining method.
        recipe: settings of the method, plain types.
        num_cases: images that it was trained on.
        versions: of the packages involved.
    """

    weights: Mapping[str, Tensor]
    name: str
    patch_size: tuple[int, ...]
    input_channels: int
    overrides: dict[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    normalization: tuple[str, ...] = ()
    method: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    def save(self, path: str | os.PathLike) -> None:
        """Write it, see ``save_encoder``."""
        save_encoder(self, path)

    def build_network(self) -> SegmentationNetwork:
        """The network that the weights are of, without memory, to ask for its grids and windows."""
        with torch.device("meta"):
            return create_network(self.name, self.input_channels, 2, self.patch_size, **self.overrides)


def encoder_weights(network: SegmentationNetwork) -> dict[str, Tensor]:
    """Stem and encoder of a network, detached, on the CPU."""
    parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
    return {n: v.detach().cpu().contiguous() for n, v in network.state_dict().items() if n.startswith(parts)}


def save_encoder(checkpoint: EncoderCheckpoint, path: str | os.PathLike) -> str:
    """Write a checkpoint whole or not at all.

    Returns:
        its content hash.

    Raises:
        OSError: if it cannot be written.
    """
    description = asdict(checkpoint)
    del description["weights"]
    more = {"nnssl_adaptation_plan": _adaptation_plan(checkpoint)}
    return save_sealed(KIND, checkpoint.weights, description, path, more)


def load_encoder(path: str | os.PathLike) -> EncoderCheckpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, altered, or no encoder checkpoint of this package.
    """
    try:
        weights, description = load_sealed(KIND, path)
    except WrongKindError as error:
        raise ValueError(
            f"{error}. Released weights of a paper become an encoder checkpoint with `nnunet-transformers convert`"
        ) from error
    for key in ("patch_size", "spacing", "normalization"):
        description[key] = None if description[key] is None else tuple(description[key])
    return EncoderCheckpoint(weights=weights, **description)


def _adaptation_plan(checkpoint: EncoderCheckpoint) -> dict[str, Any]:
    """nnssl's description of how to adapt the weights, for other readers than ours."""
    entry = get_network(checkpoint.name)
    network_class = entry.network_class
    ndim = len(checkpoint.patch_size)
    arguments = {**entry.all_arguments(ndim), **checkpoint.overrides, "patch_size": checkpoint.patch_size}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    spacing = None if checkpoint.spacing is None else list(checkpoint.spacing)
    configuration = {
        "data_identifier": checkpoint.method,
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": "median",
        "normalization_schemes": list(checkpoint.normalization),
        "use_mask_for_norm": [False] * checkpoint.input_channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_mask": "resample_data_or_seg_to_shape",
        "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "spacing": spacing,
        "patch_size": list(checkpoint.patch_size),
    }
    plan = {
        "architecture_plans": {
            "arch_class_name": entry.class_path,
            "arch_kwargs": arguments,
            "arch_kwargs_requiring_import": [],
        },
        "pretrain_plan": {
            "dataset_name": "",
            "plans_name": checkpoint.method,
            "original_median_spacing_after_transp": spacing,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": list(range(ndim)),
            "transpose_backward": list(range(ndim)),
            "experiment_planner_used": "nnunet_transformers",
            "configurations": {"pretraining": configuration},
        },
        "pretrain_num_input_channels": checkpoint.input_channels,
        "recommended_downstream_patchsize": list(checkpoint.patch_size),
        "key_to_encoder": network_class.key_to_encoder,
        "key_to_stem": network_class.key_to_stem,
        "keys_to_in_proj": list(network_class.keys_to_in_proj),
        "key_to_lpe": network_class.key_to_lpe,
    }
    return json.loads(json.dumps(plan))


def is_encoder_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a file looks like one, without checking its hash."""
    try:
        return KIND in load_checkpoint(Path(path))
    except (OSError, ValueError):
        return False
