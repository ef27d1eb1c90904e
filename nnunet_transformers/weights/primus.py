"""Pretrained checkpoints of nnU-Net's ViT, Primus, for nnU-Net's stock trainers.

Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", https://arxiv.org/abs/2503.01835.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dynamic_network_architectures.architectures import primus
from dynamic_network_architectures.architectures.primus import Primus
from torch import Tensor, nn

from .._meta import without_data
from ..architectures import get_network, list_networks
from ..architectures._arguments import check_divisible, token_grids
from ..architectures.layers import resize_position_embedding
from ..architectures.primus import TOKEN, from_stock
from ..architectures.primus import Primus as RegisteredPrimus
from .adapters import first_layers, position_embeddings, sizes_changed
from .heads import check_heads
from .load_report import LoadReport
from .pretrained import PretrainedWeights
from .transfer import Adapter, by_first_names, transfer

# weights of the last layer of the embedding, by its names
LAST_OF_STEM = "final_proj.weight"
SIZES = {
    f"primus_{version}{size.lower()}": f"Primus{version.removesuffix('_').upper()}{size}"
    for version in ("", "v2_", "v3_")
    for size in "SBML"
}
# arguments of a registered Primus that plans state and that change nothing of its encoder
OF_PLANS = {"activation_checkpointing", "strides", "auxiliary_heads"}
# arguments of nnU-Net's Primus trainers, in the version that pyproject.toml requires
STOCK = {"drop_path_rate": 0.2, "init_values": 0.1, "scale_attn_inner": True}


@dataclass(frozen=True)
class PrimusCheckpoint(PretrainedWeights):
    """Weights of a Primus' stem and encoder, by dynamic-network-architectures' names; ``name`` is one of ``SIZES``."""

    kind: ClassVar[str] = "primus"
    format: ClassVar[int] = 2
    earlier: ClassVar[tuple[int, ...]] = (1,)

    def load_into(
        self, network: nn.Module, patch_size: Sequence[int] | None = None, labels: Sequence[str] | None = None
    ) -> LoadReport:
        """Load the weights into a network built for ``patch_size``, in place, see ``load_primus_weights``.

        A registered Primus, which knows its patch, takes them too.
        """
        if isinstance(network, RegisteredPrimus):
            return load_into_registered(network, self)
        if not isinstance(network, Primus) or patch_size is None:
            raise ValueError(f"the weights are of {self.name}, the network is {type(network).__name__}")
        return load_primus_weights(network, patch_size, self)


def is_fixed_size(name: str, arguments: Mapping[str, Any] | None) -> bool:
    """Whether a name, with the arguments that a plan may state, means one of ``SIZES`` as nnU-Net's trainers build it.

    Args:
        name: a size, or the name of another network.
        arguments: arguments of the registered network of this name.

    Returns:
        False as well for a registered Primus with other arguments than its own, or unknown ones.

    Raises:
        ValueError: if there are arguments for a size that is not registered.
    """
    if name not in SIZES or not arguments:
        return name in SIZES
    if name not in list_networks():
        raise ValueError(f"{name} has fixed sizes: leave network_overrides out; primus_v2_* and primus_v3_* take some")
    registered = get_network(name).all_arguments(len(TOKEN))
    own = {key: value for key, value in arguments.items() if key not in OF_PLANS}
    return all(key in registered and json.dumps(registered[key]) == json.dumps(own[key]) for key in own)


def create_primus(name: str, input_channels: int, patch_size: Sequence[int], num_classes: int = 2) -> Primus:
    """Build a Primus as nnU-Net's trainers do.

    Args:
        name: one of ``SIZES``.
        input_channels: image channels.
        patch_size: voxels per axis, three of them.
        num_classes: output channels.

    Raises:
        ValueError: if there is no such size, or the patch is not 3D or not divisible by 8.
    """
    if name not in SIZES:
        raise ValueError(f"no Primus {name!r}; there are {', '.join(SIZES)}")
    if len(patch_size) != len(TOKEN):
        raise ValueError(f"Primus takes volumes, got patch_size {tuple(patch_size)}")
    check_divisible(patch_size, TOKEN)
    network_class = getattr(primus, SIZES[name])
    return network_class(input_channels, num_classes, patch_embed_size=TOKEN, input_shape=tuple(patch_size), **STOCK)


def load_primus_weights(network: Primus, patch_size: Sequence[int], checkpoint: PrimusCheckpoint) -> LoadReport:
    """Load a checkpoint into a Primus, in place; position embeddings and the first layers are adapted.

    Args:
        network: network to load into, such as that of nnU-Net's own trainer.
        patch_size: voxels per axis that the network was built for.
        checkpoint: encoder checkpoint.

    Returns:
        the load report.

    Raises:
        ValueError: if the weights belong to a Primus of another size, version or number of attention heads.
    """
    origin = _origin(checkpoint)
    sizes = [(n.embed_dim, len(n.eva.blocks), type(n.down_projection).__name__) for n in (origin, network)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the weights are of {checkpoint.name}, {sizes[0][0]} channels in {sizes[0][1]} layers after a "
            f"{sizes[0][2]}; the network has {sizes[1][0]} in {sizes[1][1]} after a {sizes[1][2]}"
        )
    check_heads(origin, network)
    parameters = dict(network.named_parameters())
    # two layers of the stems of V2 and V3 see the image
    stem = [name for name in parameters if name.startswith(f"{network.key_to_stem}.")]
    before, after = (token_grids(size, [TOKEN])[0] for size in (checkpoint.patch_size, patch_size))
    adapters = (flat_position_embeddings(network.key_to_lpe, before, after), first_layers(stem))
    return transfer(parameters, by_first_names(network, checkpoint.weights), adapters, checkpoint.origin)


def load_into_registered(network: RegisteredPrimus, checkpoint: PrimusCheckpoint) -> LoadReport:
    """Load a checkpoint into the registered network of the same size and version, in place.

    Raises:
        ValueError: if the weights belong to a Primus of another size, version or number of attention heads.
    """
    grid = token_grids(checkpoint.patch_size, [TOKEN])[0]
    weights = from_stock(checkpoint.weights, grid)
    # the last layer of the embedding tells channels and version
    own, others = network.stem.get_parameter(LAST_OF_STEM), weights.get(f"stem.{LAST_OF_STEM}")
    depth = len({name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")})
    if others is None or own.shape != others.shape or depth != network.depth:
        raise ValueError(
            f"the weights are of {checkpoint.name}, the network has {network.feature_channels[0]} channels in "
            f"{network.depth} layers after an embedding of {own.shape[1]}"
        )
    check_heads(_origin(checkpoint).eva, network.encoder)
    parameters = dict(network.named_parameters())
    adapters = (position_embeddings(network), first_layers([n for n in parameters if n.startswith("stem.")]))
    return transfer(parameters, by_first_names(network, weights), adapters, checkpoint.origin)


def _origin(checkpoint: PrimusCheckpoint) -> Primus:
    """Build the network that the weights belong to, without its data."""
    with without_data():
        return create_primus(checkpoint.name, checkpoint.input_channels, checkpoint.patch_size)


def flat_position_embeddings(name: str, before: Sequence[int], after: Sequence[int]) -> Adapter:
    """Create an adapter for Primus' flat position embeddings (1, tokens, dim), whose shape does not show the grid.

    Args:
        name: name of the embeddings.
        before, after: tokens per axis in the source and in the network.
    """
    change = "" if before == after else sizes_changed("grid", before, after)

    def adapt(other: str, value: Tensor, tensor: Tensor) -> tuple[Tensor, str] | None:
        if other != name or value.shape[-1] != tensor.shape[-1]:
            return None
        return resize_position_embedding(value, before, after).flatten(1, -2), change

    return adapt
