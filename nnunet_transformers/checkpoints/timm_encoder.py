"""Pretrained encoders that are timm's networks: the same safe file as ours have, without what only ours can say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import timm
from torch import Tensor, nn

from .files import load_state_dict
from .sealed import load_sealed, package_versions, save_sealed

KIND = "timm_encoder"


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

    def save(self, path: str | os.PathLike) -> None:
        """Write it whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        description = asdict(self)
        del description["weights"]
        save_sealed(KIND, self.weights, description, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TimmCheckpoint:
        """Read it.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is truncated, altered, or no such checkpoint.
        """
        weights, description = load_sealed(KIND, path)
        for key in ("patch_size", "spacing", "normalization"):
            description[key] = None if description[key] is None else tuple(description[key])
        return cls(weights, **description)

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
