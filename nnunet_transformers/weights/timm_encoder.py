"""Encoder checkpoints of timm networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import timm
from huggingface_hub import constants, try_to_load_from_cache
from torch import Tensor, nn

from .._meta import without_data
from .._reading import first_line
from ..hub import Address, unreachable
from .described import build_filled
from .file import load_checkpoint
from .layout import find_state_dicts, strip_prefix
from .limits import check_finite
from .pretrained import PretrainedWeights

# names of the weights in timm's repositories
TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
# the training whose weights a name without a tag means, so that an update of timm does not change that
TAGS = {
    "convnext_femto": "d1_in1k",
    "convnext_pico": "d1_in1k",
    "convnext_tiny": "in12k_ft_in1k",
    "convnext_base": "fb_in22k_ft_in1k",
    "convnext_large": "fb_in22k_ft_in1k",
    "swin_tiny_patch4_window7_224": "ms_in1k",
    "swin_small_patch4_window7_224": "ms_in22k_ft_in1k",
    "swin_base_patch4_window7_224": "ms_in22k_ft_in1k",
    "swin_large_patch4_window7_224": "ms_in22k_ft_in1k",
    "vit_tiny_patch16_224": "augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "augreg_in21k_ft_in1k",
    "vit_base_patch16_224": "augreg2_in21k_ft_in1k",
    "vit_large_patch16_224": "augreg_in21k_ft_in1k",
    "vit_small_patch14_dinov2": "lvd142m",
    "vit_base_patch14_dinov2": "lvd142m",
    "vit_large_patch14_dinov2": "lvd142m",
    "vit_small_patch14_reg4_dinov2": "lvd142m",
    "vit_base_patch14_reg4_dinov2": "lvd142m",
    "vit_large_patch14_reg4_dinov2": "lvd142m",
    "vit_small_patch16_dinov3": "lvd1689m",
    "vit_base_patch16_dinov3": "lvd1689m",
    "vit_large_patch16_dinov3": "lvd1689m",
    "resnet18": "a1_in1k",
    "resnet34": "a1_in1k",
    "resnet50": "a1_in1k",
    "resnet101": "a1h_in1k",
    "resnet152": "a1h_in1k",
}


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
        pretrained: True to download timm's weights, those of ``TAGS`` if the name has no tag, or a file of them; a
            ViT's position embeddings are interpolated.

    Raises:
        ValueError: if timm has no such network, or the file cannot be read safely or is of another network.
        FileNotFoundError: if there is no such file.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}; timm.list_models('*resnet*') searches by name")
    known = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": tuple(patch_size)} if known and known.fixed_input_size else {}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"state_dict": _weights_of(name, Path(pretrained))}
    elif pretrained:
        name = tagged(name)
        options |= _cached_weights(name)
    network: nn.Module = timm.create_model(name, bool(pretrained), in_chans=input_channels, num_classes=0, **options)
    cast(dict[str, Any], network.pretrained_cfg).pop("state_dict", None)
    return network


def tagged(name: str) -> str:
    """Complete timm's name of a network with the tag in ``TAGS``, if it has none."""
    return name if "." in name or name not in TAGS else f"{name}.{TAGS[name]}"


def timm_pretrained(name: str) -> nn.Module:
    """Create timm's network with its weights: of the hub or, where that gives no answer, of its cache.

    Args:
        name: of the network, with the tag.

    Raises:
        ValueError: if the weights can be had from neither; the message has the address for a browser.
    """
    options = _cached_weights(name)
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # the hub's client raises many types
        raise _not_downloaded(name, first_line(error).rstrip(".")) from error
    return network


def _cached_weights(name: str) -> dict[str, Any]:
    """Arguments by which timm takes weights from the cache, if the hub gives no answer: timm would try for a minute."""
    repository = _repository(name)
    reason = unreachable(Address.parse(repository))
    if reason is None:
        return {}
    files = [try_to_load_from_cache(repository, file) for file in TIMM_FILES]
    if not (found := [file for file in files if isinstance(file, str)]):
        raise _not_downloaded(name, reason)
    return {"pretrained_cfg_overlay": {"file": found[0]}}


def _repository(name: str) -> str:
    """Repository of timm's weights on the hub: of most the name is that of the weights."""
    return getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or f"timm/{name}"


def _not_downloaded(name: str, reason: str) -> ValueError:
    return ValueError(
        f"cannot download {name} ({reason}): download {TIMM_FILES[0]} where there is a connection, from "
        f"{constants.ENDPOINT}/{_repository(name)}, and give the path of that file"
    )


def _weights_of(name: str, path: Path) -> dict[str, Tensor]:
    """Read a file's weights for a timm network, without prefixes: timm would load whatever has the right names."""
    with without_data():
        expected = timm.create_model(name, num_classes=0).state_dict()
    best: dict[str, Tensor] = {}
    for _, found in find_state_dicts(load_checkpoint(path)):
        weights, _ = strip_prefix(found, expected)
        if len(weights.keys() & expected.keys()) > len(best.keys() & expected.keys()):
            best = weights
    matched = len(best.keys() & expected.keys())
    if matched < len(expected) / 2:
        raise ValueError(f"{path} holds {matched} of the {len(expected)} tensors of timm's {name}; get its weights")
    check_finite(best, path)
    return best
