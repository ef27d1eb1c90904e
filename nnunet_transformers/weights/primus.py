"""Checkpoints of nnU-Net's own ViT, Primus, pretrained; its stock trainers can start from them.

Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", https://arxiv.org/abs/2503.01835.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from dynamic_network_architectures.architectures import primus
from dynamic_network_architectures.architectures.primus import Primus
from torch import Tensor

from ..architectures._arguments import check_divisible, token_grids
from ..architectures.layers import resize_position_embedding
from .adapters import first_layers, sizes_changed
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .transfer import Adapter, transfer

TOKEN = (8, 8, 8)
SIZES = {
    f"primus_{version}{size.lower()}": f"Primus{version.removesuffix('_').upper()}{size}"
    for version in ("", "v2_", "v3_")
    for size in "SBML"
}
# settings of nnU-Net's Primus trainers, in the version that pyproject.toml names
STOCK = {"drop_path_rate": 0.2, "init_values": 0.1, "scale_attn_inner": True}


@dataclass(frozen=True)
class PrimusCheckpoint(PretrainedWeights):
    """Weights of a Primus (one of ``SIZES``) without its decoder, by the names of dynamic-network-architectures."""

    kind: ClassVar[str] = "primus"
    format: ClassVar[int] = 1


def create_primus(name: str, input_channels: int, patch_size: Sequence[int], num_classes: int = 2) -> Primus:
    """Build a Primus as nnU-Net's trainers do.

    Args:
        name: one of ``SIZES``.
        input_channels: image channels.
        patch_size: voxels per axis, three of them.
        num_classes: output channels.

    Raises:
        ValueError: if there is no such size, or 8 does not divide the patch.
    """
    if name not in SIZES:
        raise ValueError(f"no Primus {name!r}; there are {', '.join(SIZES)}")
    if len(patch_size) != len(TOKEN):
        raise ValueError(f"Primus takes volumes, got patch_size {tuple(patch_size)}")
    check_divisible(patch_size, TOKEN)
    network_class = getattr(primus, SIZES[name])
    return network_class(input_channels, num_classes, patch_embed_size=TOKEN, input_shape=tuple(patch_size), **STOCK)


def primus_weights(network: Primus) -> dict[str, Tensor]:
    """Stem and encoder of a network, detached, on the CPU."""
    parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
    return {n: v.detach().cpu().contiguous() for n, v in network.state_dict().items() if n.startswith(parts)}


def load_primus_weights(
    network: Primus, patch_size: Sequence[int], checkpoint: PrimusCheckpoint, source: str = ""
) -> LoadReport:
    """Start a Primus from a checkpoint, in place; position embeddings and the first layers are adapted.

    Args:
        network: to start, such as that of nnU-Net's own trainer.
        patch_size: that it was built for.
        checkpoint: the weights.
        source: their origin in words, for the report.

    Returns:
        what was loaded, adapted, left fresh and unused.

    Raises:
        ValueError: if the weights are of a Primus of another size or version.
    """
    with torch.device("meta"):
        origin = create_primus(checkpoint.name, checkpoint.input_channels, checkpoint.patch_size)
    sizes = [(n.embed_dim, len(n.eva.blocks), type(n.down_projection).__name__) for n in (origin, network)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the weights are of {checkpoint.name}, {sizes[0][0]} channels in {sizes[0][1]} layers after a "
            f"{sizes[0][2]}; the network has {sizes[1][0]} in {sizes[1][1]} after a {sizes[1][2]}"
        )
    parameters, aliases = dict(network.named_parameters()), network.state_dict().keys()
    # later versions have the layers of their stem under several names, of which one is a parameter's
    weights = {n: v for n, v in checkpoint.weights.items() if n in parameters or n not in aliases}
    # and see the image in two layers of it
    stem = [name for name in parameters if name.startswith(f"{network.key_to_stem}.")]
    before, after = (token_grids(size, [TOKEN])[0] for size in (checkpoint.patch_size, patch_size))
    adapters = (_flat_position_embeddings(network.key_to_lpe, before, after), first_layers(stem))
    return transfer(parameters, weights, adapters, source or checkpoint.origin)


def _flat_position_embeddings(name: str, before: Sequence[int], after: Sequence[int]) -> Adapter:
    """Interpolate Primus' position embeddings, which are flat: grids of as many tokens have them in one shape."""
    change = "" if before == after else sizes_changed("grid", before, after)

    def adapt(other: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        return (resize_position_embedding(value, before, after).flatten(1, -2), change) if other == name else None

    return adapt
