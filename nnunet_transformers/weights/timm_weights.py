"""Weights of timm's networks for the networks here that share their blocks or have them as encoder.

ConvNeXt and Swin for UNet-2022, Swin for QT-UNet (thesis, section 3.3.8), ViT for SETR-PUP, ResNet for its U-Net.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isqrt, prod
from pathlib import Path
from typing import Any

import timm
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn

from .._meta import without_data
from .._reading import reading
from ..architectures.layers import PatchMerging
from ..architectures.qt_unet import QTUNet
from ..architectures.unet2022 import UNet2022
from .adapters import bias_tables, first_layers, inflated_kernels
from .encoder import EncoderCheckpoint, load_encoder_weights
from .heads import check_heads_of_tables
from .imagenet import CONVNEXT, SWIN, load_blocks
from .layout import beside, find_state_dicts, others, place, split_prefix, strip_prefix
from .load_report import LoadReport
from .timm_encoder import TimmCheckpoint, tagged, timm_pretrained
from .transfer import transfer

# timm's networks that files are compared with, those that networks here start from
CANDIDATES = (
    *(name for family in (CONVNEXT, SWIN) for name in family.names.values()),
    "swin_small_patch4_window7_224",
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *(f"vit_{size}_patch{patch}_224" for size in ("small", "base") for patch in (8, 32)),
    *(f"deit3_{size}_patch16_224" for size in ("small", "base", "large")),
    *(f"vit_{size}_patch14_{dino}" for size in ("small", "base", "large") for dino in ("reg4_dinov2", "dinov2")),
    *(f"vit_{size}_patch16_dinov3{bias}" for size in ("small", "base", "large") for bias in ("", "_qkvb")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
)
FIRST_LAYERS = ("patch_embed.proj.weight", "conv1.weight", "stem.0.weight")
# tokens beside patches and class that only some ViTs have
OTHER_TOKENS = ("dist_token", "reg_token")
MERGING = re.compile(r"layers\.(\d+)\.downsample\.(.+)")
CLASSIFIERS = ("head.", "fc.", "norm_pre.", "fc_norm.")


@dataclass(frozen=True)
class TimmWeights:
    """Weights by timm's names.

    Attributes:
        name: timm's name of the network.
        weights: its weights, with or without a classifier.
        origin: where they come from, in words.
        citations: references that go with the weights, one text each.
        is_dinov2s: whether the names are DINOv2's own, where beside registers the position embeddings have a row of the
            class token; timm's have none then.
        others: numbers of tensors of the file's other state dicts, by their place.
    """

    name: str
    weights: Mapping[str, Tensor]
    origin: str
    citations: Sequence[str] = ()
    is_dinov2s: bool = False
    others: Mapping[str, int] = field(default_factory=dict)

    def load_into(self, network: nn.Module, **_: Any) -> LoadReport:
        """Load the weights into a network, in place.

        Raises:
            ValueError: if the network has no blocks and no encoder of this kind, or the weights are of other tokens, of
                another number of attention heads, or of a grid that neither they nor the network show.
        """
        report = self._load_into(network)
        report.others = dict(self.others)
        return report

    def _load_into(self, network: nn.Module) -> LoadReport:
        family = next((f for f in (CONVNEXT, SWIN) if f"{f.stages}.0.blocks.0.mlp.fc1.weight" in self.weights), None)
        if isinstance(network, UNet2022) and family is not None:
            self._check_width(network.feature_channels[0], family.stages)
            return load_blocks(network, [(family, self.weights, self.origin)])
        if isinstance(network, QTUNet) and family is SWIN:
            self._check_width(network.feature_channels[0], family.stages)
            return _load_swin(network, self.weights, self.origin)
        checkpoint = self._checkpoint(network)
        encoder = EncoderCheckpoint.from_timm(checkpoint)
        report = load_encoder_weights(network, encoder, self.origin)  # type: ignore[arg-type]  # states other classes
        report.unused += [name for name in self.weights if name not in checkpoint.weights]
        return report

    def _check_width(self, width: int, stages: str) -> None:
        found = self.weights[f"{stages}.0.blocks.0.mlp.fc1.weight"].shape[1]
        if found != width:
            raise ValueError(f"{self.name} has {found} channels in its first stage, the network {width}")

    def _checkpoint(self, network: nn.Module) -> TimmCheckpoint:
        """The weights as a checkpoint without a classifier, at the image size of their position embeddings."""
        first = next((v for n, v in self.weights.items() if n in FIRST_LAYERS[:2]), None)
        if first is None:
            raise ValueError(f"{self.name} is the encoder of no network here")
        with without_data():
            origin = timm.create_model(self.name, num_classes=0, in_chans=first.shape[1])
        expected = origin.state_dict()
        foreign = [name for name in OTHER_TOKENS if name in self.weights and name not in expected]
        if foreign:
            raise ValueError(f"{self.origin}: no network here takes a ViT with {foreign[0]}; get one without")
        weights = {name: value for name, value in self.weights.items() if name in expected}
        size = (224, 224)
        if "pos_embed" in weights:
            height, width = self._grid(origin, network)
            size = (height * first.shape[2], width * first.shape[3])
        return TimmCheckpoint(weights, self.name, size, first.shape[1], method="timm")

    def _grid(self, vit: Any, network: nn.Module) -> tuple[int, int]:
        """Patches per axis of the position embeddings, which show only how many: a square, or those of the network."""
        rows = self.weights["pos_embed"].shape[1]
        patches = rows - (int(self.is_dinov2s) if vit.no_embed_class else vit.num_prefix_tokens)
        edge = isqrt(max(patches, 0))
        for grid in ((edge, edge), *getattr(network, "grid_sizes", ())):
            if prod(grid) == patches > 0:
                return grid[0], grid[1]
        raise ValueError(
            f"{self.origin}: position embeddings of {patches} patches, which are no square, so that their grid is "
            "unknown; load them into a network of the patch size of their training"
        )


def _load_swin(network: QTUNet, weights: Mapping[str, Tensor], origin: str) -> LoadReport:
    """Load Swin's blocks, patch embedding and patch merging, which are inflated in 3D."""
    renamed = {}
    merging = [name for name, module in network.named_modules() if isinstance(module, PatchMerging) and module.is_swins]
    for name, value in weights.items():
        new = name.replace("patch_embed.", "stem.").replace("layers.", "encoder.stages.").replace("norm2.", "norm3.")
        new = new.replace("relative_position_bias_table", "bias.table")
        new = re.sub(r"^norm\.", "encoder.norm.", new)
        if found := MERGING.fullmatch(name):  # timm counts it to the stage behind
            new = f"encoder.stages.{int(found[1]) - 1}.downsample.{found[2]}"
        is_foreign = found is not None and new.rpartition(".")[0].rpartition(".")[0] not in merging
        renamed[f"swin: {name}" if is_foreign or name.startswith(CLASSIFIERS) else new] = value

    def table_shape(_: str, value: Tensor) -> tuple[int, int]:
        return (isqrt(len(value)),) * 2

    check_heads_of_tables(renamed, network)
    first = first_layers(["stem.proj.weight"])
    adapters = (bias_tables(network, table_shape), inflated_kernels("stem.proj.weight", first), _inflated_merging)
    return transfer(dict(network.named_parameters()), renamed, adapters, origin)


def _inflated_merging(name: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
    """Repeat patch merging over the neighbours in depth; tokens that are constant along it are merged as in 2D."""
    copies, rest = divmod(tensor.shape[-1], value.shape[-1])
    if ".downsample." not in name or rest or copies < 2:
        return None
    scale = copies if value.dim() == 2 else 1  # the norm's weights are those of each neighbour
    return value.repeat(*[1] * (value.dim() - 1), copies) / scale, f"inflated to {copies}"


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with without_data():
        state = timm.create_model(name).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.startswith(CLASSIFIERS)}


def timm_file(path: Path, content: Mapping[str, Any]) -> TimmWeights | None:
    """Files with the weights of a timm network, such as MGCA's image encoders."""
    found = find_state_dicts(content)
    for where, theirs in found:
        with reading(path, "weights of timm"):
            renamed, outer = _by_timms_names(theirs)
        for name in CANDIDATES:
            weights, inner = strip_prefix(renamed, _shapes(name))
            if _is_of(weights, _shapes(name)):
                return TimmWeights(
                    name,
                    weights,
                    f"{place(path, where, outer + inner)}, weights of {name}",
                    is_dinov2s=f"{outer}{inner}register_tokens" in theirs,
                    others=others(found, where),
                )
    return None


def _by_timms_names(weights: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Rename what DINOv2's and DINOv3's own files name otherwise; returns the prefix that DINOv3's lost too."""
    stripped, prefix = strip_prefix(weights, {"storage_tokens"})
    if "storage_tokens" in stripped:
        own, elsewhere = split_prefix(weights, prefix)
        with without_data():
            vit = timm.create_model("vit_small_patch16_dinov3_qkvb")
        return beside(checkpoint_filter_fn(own, vit), elsewhere), prefix
    return {re.sub(r"(^|\.)register_tokens$", r"\1reg_token", name): v for name, v in weights.items()}, ""


def _is_of(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether weights are a network's, up to image size, input channels and classifier."""
    # another network's may have these and more: LayerScale, biases
    parts = {name.partition(".")[0] for name in expected}
    if any(name.partition(".")[0] in parts and name not in expected for name in weights):
        return False
    for name, shape in expected.items():
        if name not in weights:
            return False
        found = tuple(weights[name].shape)
        if name in ("pos_embed", *FIRST_LAYERS):  # the second axis has tokens or input channels
            found, shape = (*found[:1], *found[2:]), (*shape[:1], *shape[2:])
        if found != shape:
            return False
    return True


def timm_model(name: str) -> tuple[TimmWeights, str]:
    """Download weights of timm by the name of the network, with or without the tag of its training.

    Returns:
        the weights, and the name with the tag.

    Raises:
        ValueError: if timm has no such network or tag, or the hub cannot be reached.
    """
    full = tagged(name)
    network = full.partition(".")[0]
    if full not in timm.list_pretrained(f"{network}*"):
        known = ", ".join(timm.list_pretrained(f"{network}.*")[:6])
        raise ValueError(
            f"timm has no weights {full!r}; " + (f"it has {known}" if known else "see timm.list_pretrained()")
        )
    return TimmWeights(network, timm_pretrained(full).state_dict(), f"timm's {full}"), full
