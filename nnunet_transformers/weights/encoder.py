"""Encoder checkpoints: what pretraining writes and every trainer here, and nnssl's readers, can start from.

One file of tensors and plain types, read without unpickling. It is an nnssl checkpoint (``network_weights`` and
``nnssl_adaptation_plan``) with an entry ``encoder`` that says what the weights are of, and their hash.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..architectures import SegmentationNetwork, create_network, get_network, get_timm_family
from .file import load_checkpoint
from .pretrained import PretrainedWeights
from .sealed import WrongKindError
from .timm_encoder import TimmCheckpoint, create_timm

KIND = "encoder"


@dataclass(frozen=True)
class EncoderCheckpoint(PretrainedWeights):
    """Weights of stem and encoder of a registered network and all that is known of them.

    Attributes:
        overrides: the network's arguments beyond the registered ones.
    """

    kind: ClassVar[str] = KIND
    overrides: dict[str, Any] = field(default_factory=dict)

    def build_network(self) -> SegmentationNetwork:
        """The network that the weights are of, without memory, to ask for its grids and windows."""
        with torch.device("meta"):
            return create_network(self.name, self.input_channels, 2, self.patch_size, **self.overrides)

    def _more(self) -> dict[str, Any]:
        return {"nnssl_adaptation_plan": _adaptation_plan(self)}

    @classmethod
    def from_timm(cls, checkpoint: TimmCheckpoint) -> EncoderCheckpoint:
        """The registered network that has a network of timm's as stem and encoder, with its weights.

        Raises:
            ValueError: if there is none; says of which of timm's there is one.
        """
        with torch.device("meta"):
            network = create_timm(checkpoint.name, checkpoint.input_channels, checkpoint.patch_size)
        family = get_timm_family(network, checkpoint.name)
        # timm's leave out what remains of an image behind the last whole cell, ours want none to remain
        stride = network.feature_info[-1]["reduction"]
        changed = {
            "name": family.network,
            "overrides": family.overrides(network, checkpoint.name),
            "patch_size": tuple(max(p // stride, 1) * stride for p in checkpoint.patch_size),
            "weights": family.checkpoint_filter(checkpoint.weights, network),
        }
        encoder = cls(**{f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)} | changed)
        shapes = {name: tuple(value.shape) for name, value in _encoder_state(encoder.build_network()).items()}
        differing = shapes.items() ^ {(name, tuple(value.shape)) for name, value in encoder.weights.items()}
        if differing:
            raise ValueError(
                f"timm's {checkpoint.name} differs from the encoder of {family.network}, which is like "
                f"{family.example}, in {', '.join(sorted({name for name, _ in differing})[:4])}"
            )
        return encoder


def encoder_weights(network: SegmentationNetwork) -> dict[str, Tensor]:
    """Stem and encoder of a network, statistics of batch norms included, detached, on the CPU."""
    return {name: value.cpu().contiguous() for name, value in _encoder_state(network).items()}


def _encoder_state(network: SegmentationNetwork) -> dict[str, Tensor]:
    parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
    return {name: value.detach() for name, value in network.state_dict().items() if name.startswith(parts)}


def load_encoder(path: str | os.PathLike) -> EncoderCheckpoint:
    """Read a checkpoint, of a registered network or of one of timm's that is a registered network's encoder.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, altered, no encoder checkpoint of this package, or of one of timm's networks
            that is the encoder of none here.
    """
    try:
        return EncoderCheckpoint.load(path)
    except WrongKindError as error:
        with suppress(WrongKindError):
            return EncoderCheckpoint.from_timm(TimmCheckpoint.load(path))
        raise ValueError(
            f"{error}. Released weights of a paper become an encoder checkpoint with `nnunet-transformers convert`"
        ) from error


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
