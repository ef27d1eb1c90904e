"""Encoder checkpoints: what pretraining writes and every trainer here, and nnssl's readers, can start from.

One file of tensors and plain types, read without unpickling. It is an nnssl checkpoint (``network_weights`` and
``nnssl_adaptation_plan``) with an entry ``encoder`` that says what the weights are of, and their hash.
"""

from __future__ import annotations

import hashlib
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
from .files import load_checkpoint, save_checkpoint

FORMAT = 1
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

    def build_network(self) -> SegmentationNetwork:
        """The network that the weights are of, without memory, to ask for its grids and windows."""
        with torch.device("meta"):
            return create_network(self.name, self.input_channels, 2, self.patch_size, **self.overrides)


def encoder_weights(network: SegmentationNetwork) -> dict[str, Tensor]:
    """Stem and encoder of a network, detached, on the CPU."""
    parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
    return {n: v.detach().cpu().contiguous() for n, v in network.state_dict().items() if n.startswith(parts)}


def content_hash(weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """SHA-256 of names, types, shapes and bytes of the weights and of their description."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_encoder(checkpoint: EncoderCheckpoint, path: str | os.PathLike) -> str:
    """Write a checkpoint whole or not at all.

    Returns:
        its content hash.

    Raises:
        OSError: if it cannot be written.
    """
    return save_described(checkpoint, "encoder", path, nnssl_adaptation_plan=_adaptation_plan(checkpoint))


def save_described(checkpoint: Any, entry: str, path: str | os.PathLike, **more: Any) -> str:
    """Write the weights of a checkpoint and what else its dataclass says, hashed.

    Args:
        checkpoint: a dataclass with ``weights``.
        entry: name of the description in the file.
        path: file to write.
        more: entries besides.

    Returns:
        its content hash.

    Raises:
        OSError: if it cannot be written.
    """
    weights = dict(checkpoint.weights)
    description = asdict(checkpoint)
    del description["weights"]
    # through JSON: tuples become lists and anything that is no plain type is an error here, not at loading
    description = json.loads(json.dumps({**description, "format": FORMAT}))
    sha256 = content_hash(weights, description)
    save_checkpoint({"network_weights": weights, **more, entry: {**description, "sha256": sha256}}, path)
    return sha256


def load_encoder(path: str | os.PathLike) -> EncoderCheckpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, altered, or no encoder checkpoint of this package.
    """
    hint = "Released weights of a paper become one with `nnunet-transformers convert`"
    return EncoderCheckpoint(**load_described(path, "encoder", hint))


def load_described(path: str | os.PathLike, entry: str, hint: str) -> dict[str, Any]:
    """Read what ``save_described`` wrote.

    Args:
        path: the file.
        entry: name of the description in it.
        hint: what to do if there is none.

    Returns:
        arguments of the checkpoint's dataclass.

    Raises:
        FileNotFoundError, ValueError: as ``load_encoder``.
    """
    content = load_checkpoint(path)
    description, weights = content.get(entry), content.get("network_weights")
    if not isinstance(description, Mapping) or not isinstance(weights, Mapping) or "sha256" not in description:
        found = ", ".join(map(str, list(content)[:6]))
        raise ValueError(f"{path} is no {entry.replace('_', ' ')} checkpoint (it has {found}). {hint}")
    description = dict(description)
    expected = description.pop("sha256")
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {description.get('format')}, this version reads {FORMAT}; update nnunet-transformers"
        )
    if content_hash(weights, description) != expected:
        raise ValueError(f"{path} was altered after it was written: its hash differs; get it again from its source")
    del description["format"]
    for key in ("patch_size", "spacing", "normalization"):
        description[key] = None if description[key] is None else tuple(description[key])
    return {"weights": weights, **description}


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
        return "encoder" in load_checkpoint(Path(path))
    except (OSError, ValueError):
        return False
