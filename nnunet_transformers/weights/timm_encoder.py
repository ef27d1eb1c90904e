"""Encoder checkpoints of timm networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import timm
from torch import nn

from .described import build_filled
from .file import load_state_dict
from .pretrained import PretrainedWeights


@dataclass(frozen=True)
class TimmCheckpoint(PretrainedWeights):
    """Weights of a timm network without its classifier, by timm's names, and their description."""

    kind: ClassVar[str] = "timm_encoder"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)

    def build_network(self) -> nn.Module:
        """Build the network with its weights.

        Raises:
            ValueError: if timm has no such network, or it has other weights.
        """
        return build_filled(
            lambda: create_timm(self.name, self.input_channels, self.patch_size), self.weights, "a timm checkpoint"
        )


def create_timm(name: str, input_channels: int, patch_size: Sequence[int], pretrained: bool | str = False) -> nn.Module:
    """Build a timm network without its classifier, (batch, input_channels, *patch_size) to (batch, head_hidden_size).

    Args:
        name: timm's name of the network.
        input_channels: image channels; timm sums the RGB kernels of pretrained weights for one channel.
        patch_size: height and width of the images; a ViT accepts no other size.
        pretrained: True to download timm's weights, or a file of them; a ViT's position embeddings are interpolated.

    Raises:
        ValueError: if timm has no such network, or the file cannot be read safely.
        FileNotFoundError: if there is no such file.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; timm.list_models('*resnet*') searches by name")
    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": tuple(patch_size)} if known and known.fixed_input_size else {}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"state_dict": load_state_dict(pretrained)}
    network: nn.Module = timm.create_model(name, bool(pretrained), in_chans=input_channels, num_classes=0, **options)
    cast(dict[str, Any], network.pretrained_cfg).pop("state_dict", None)
    return network
