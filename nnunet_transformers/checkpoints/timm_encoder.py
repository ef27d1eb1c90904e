"""Pretrained encoders that are timm's networks: the same safe file as ours have, without what only ours can say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import Tensor, nn

from .encoder import load_described, package_versions, save_described
from .files import load_state_dict

ENTRY = "timm_encoder"


@dataclass(frozen=True)
class TimmCheckpoint:
    """Weights of one of timm's networks without its classifier and all that is known of them.

    Attributes:
        weights: by timm's names.
        name: timm's.
        patch_size, input_channels, spacing, normalization, method, recipe, num_cases, versions: as
            ``EncoderCheckpoint``'s.
    """

    weights: Mapping[str, Tensor]
    name: str
    patch_size: tuple[int, ...]
    input_channels: int
    spacing: tuple[float, ...] | None = None
    normalization: tuple[str, ...] = ()
    method: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    num_cases: int = 0
    versions: dict[str, str] = field(default_factory=package_versions)

    def build_network(self) -> nn.Module:
        """The network with its weights."""
        network = create_timm(self.name, self.input_channels, self.patch_size)
        network.load_state_dict(self.weights)
        return network


def create_timm(name: str, input_channels: int, patch_size: Sequence[int], pretrained: bool | str = False) -> nn.Module:
    """One of timm's networks without its classifier.

    Args:
        name: timm's.
        input_channels: image channels; pretrained kernels of RGB are summed for one.
        patch_size: height and width of images; a ViT takes no others.
        pretrained: timm's weights, downloaded, or a file with them. A ViT's position embeddings are interpolated.

    Raises:
        ValueError: if timm has no such network, or the file cannot be read safely.
        FileNotFoundError: if there is no such file.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; timm.list_models('*resnet*') lists those of a name")
    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": tuple(patch_size)} if known and known.fixed_input_size else {}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"state_dict": load_state_dict(pretrained)}
    network = timm.create_model(name, bool(pretrained), in_chans=input_channels, num_classes=0, **options)
    network.pretrained_cfg.pop("state_dict", None)
    return network


def save_timm_encoder(checkpoint: TimmCheckpoint, path: str | os.PathLike) -> str:
    """Write a checkpoint whole or not at all.

    Returns:
        its content hash.

    Raises:
        OSError: if it cannot be written.
    """
    return save_described(checkpoint, ENTRY, path)


def load_timm_encoder(path: str | os.PathLike) -> TimmCheckpoint:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is truncated, altered, or no such checkpoint.
    """
    hint = "One of this package's own networks is read with load_encoder"
    return TimmCheckpoint(**load_described(path, ENTRY, hint))
