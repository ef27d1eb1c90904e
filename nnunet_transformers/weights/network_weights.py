"""Weights of a whole network or of its encoder, by the network's own names: nnU-Net's, nnssl's and translated releases.

Between networks of one naming everything is loaded that fits: the decoder as well, and the segmentation heads where the
labels agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from dynamic_network_architectures.architectures.primus import Primus
from torch import Tensor, nn

from ..architectures import SegmentationNetwork
from ..architectures._arguments import token_grids
from ..architectures._network import BRANCH_IN_PROJ
from ..architectures.primus import TOKEN, from_stock
from ..architectures.primus import Primus as RegisteredPrimus
from .adapters import bias_tables, convolution_kernels, first_layers, position_embeddings
from .encoder import encoder_adapters
from .heads import check_heads
from .layout import place, strip_prefix
from .load_report import LoadReport
from .primus import flat_position_embeddings
from .transfer import Adapter, by_first_names, tensors_of, transfer

# of networks here and nnU-Net's CNNs, and of nnU-Net's Primus
HEADS = ("decoder.seg_layers.", "up_projection.decode.2.")
# of nnU-Net's Primus
STOCK_POSITION = "eva.pos_embed"


@dataclass(frozen=True)
class NetworkWeights:
    """Weights, and what their file tells of the network that they belong to.

    Attributes:
        weights: weights by name, possibly with a prefix of wrappers such as ``module.``.
        origin: origin of the weights in words.
        network: the network on the meta device; None if the file describes none that can be built.
        patch_size: voxels per axis of the network's training; None if unknown.
        labels: names of the labels, in the order of the heads; None if unknown.
        renamed: prefixes of names, those of the file to those of networks here.
        citations: references that go with the weights, one text each.
        others: numbers of tensors of the file's other state dicts, by their place.
    """

    weights: Mapping[str, Tensor]
    origin: str
    network: nn.Module | None = None
    patch_size: Sequence[int] | None = None
    labels: Sequence[str] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    citations: Sequence[str] = ()
    others: Mapping[str, int] = field(default_factory=dict)

    def load_into(
        self, network: nn.Module, patch_size: Sequence[int] | None = None, labels: Sequence[str] | None = None
    ) -> LoadReport:
        """Load the weights into a fresh network, in place.

        Args:
            network: network to load into.
            patch_size: voxels per axis that it was built for, for a network that does not store it.
            labels: names of its labels, in the order of the heads; heads of other labels keep their initialisation.

        Returns:
            the load report.

        Raises:
            ValueError: if nothing fits the network, 2D and 3D are mixed, or attention has another number of heads than
                that of ``self.network``.
        """
        target = tensors_of(network)
        weights, prefix = strip_prefix(self._renamed(), network.state_dict())
        if isinstance(network, RegisteredPrimus):
            weights = self._of_stock_primus(weights)
        weights = by_first_names(network, weights)
        self._check_dimensions(network, target, weights)
        if isinstance(self.network, type(network)):
            check_heads(self.network, network)
        origin = place(self.origin, "", prefix)
        heads = [name for name in weights if name.startswith(HEADS)] if self._has_other_labels(labels) else []
        report = transfer(
            target,
            {name: value for name, value in weights.items() if name not in heads},
            self._adapters(network, patch_size),
            origin,
        )
        report.others = dict(self.others)
        report.fresh |= {name: "heads of other labels" for name in heads if name in target}
        if not report.loaded and not report.adapted:
            reason = next((f": {n} has {r}" for n, r in report.fresh.items() if n in weights), ", no name is the same")
            raise ValueError(f"nothing of {origin} fits this {type(network).__name__}{reason}")
        return report

    def _check_dimensions(
        self, network: nn.Module, target: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        own, other = (len(getattr(n, "patch_size", ())) for n in (self.network, network))
        # linear layers fit whatever the number of axes; the first convolution tells it where nothing else does
        first = next((f"{key}.weight" for key in getattr(network, "keys_to_in_proj", ())), "")
        if first in target and first in weights:
            own, other = own or weights[first].dim() - 2, other or target[first].dim() - 2
        if own and other and own != other:
            raise ValueError(f"the weights are of a {own}D network, this one is {other}D")

    def _renamed(self) -> dict[str, Tensor]:
        renamed = {}
        for name, value in self.weights.items():
            prefix = next((old for old in self.renamed if name.startswith(old)), None)
            renamed[name if prefix is None else self.renamed[prefix] + name.removeprefix(prefix)] = value
        return renamed

    def _of_stock_primus(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the names of the registered Primus, if they are by those of nnU-Net's trainers."""
        weights, _ = strip_prefix(weights, {STOCK_POSITION})
        grid = self._primus_grid(weights.get(STOCK_POSITION))
        return dict(weights) if grid is None else from_stock(weights, grid)

    def _has_other_labels(self, labels: Sequence[str] | None) -> bool:
        return labels is not None and self.labels is not None and list(labels) != list(self.labels)

    def _adapters(self, network: nn.Module, patch_size: Sequence[int] | None) -> Sequence[Adapter]:
        keys = (*getattr(network, "keys_to_in_proj", ()), BRANCH_IN_PROJ)
        first = first_layers([f"{key}.weight" for key in keys])
        if isinstance(network, SegmentationNetwork):
            if isinstance(self.network, type(network)):
                return encoder_adapters(network, self.network)
            return bias_tables(network, _square_windows(network)), position_embeddings(network), first
        if isinstance(network, Primus) and patch_size is not None:
            position = self.weights.get(network.key_to_lpe)
            before = self._primus_grid(position)
            after = token_grids(patch_size, [TOKEN])[0]
            if before is not None:
                # two layers of the stems of V2 and V3 see the image
                stem = [n for n, _ in network.named_parameters() if n.startswith(f"{network.key_to_stem}.")]
                return flat_position_embeddings(network.key_to_lpe, before, after), first_layers(stem)
        return first, convolution_kernels(network)

    def _primus_grid(self, position: Tensor | None) -> Sequence[int] | None:
        """Tokens per axis of the position embeddings, whose shape does not show it."""
        if position is None or position.dim() != 3:
            return None
        tokens = position.shape[1]
        if self.patch_size is not None and prod(self.patch_size) == tokens * prod(TOKEN):
            return token_grids(self.patch_size, [TOKEN])[0]
        edge = round(tokens ** (1 / len(TOKEN)))
        return (edge,) * len(TOKEN) if edge ** len(TOKEN) == tokens else None


def _square_windows(network: SegmentationNetwork) -> Any:
    """Offsets per axis of bias tables whose file does not tell their windows: as many on each axis, if that fits."""
    ndim = len(network.patch_size)

    def table_shape(_: str, value: Tensor) -> Sequence[int]:
        return (round(len(value) ** (1 / ndim)),) * ndim

    return table_shape
