"""Attention heads: weights have the same shapes whatever their number, but other features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..architectures.layers import RelativePositionBias


def check_heads(origin: nn.Module, network: nn.Module) -> None:
    """Check that attention has as many heads in a network as where its weights come from.

    Only modules of the same name are compared whose matrices have the same shapes: of others nothing is loaded.

    Args:
        origin: network that the weights belong to.
        network: network to load into.

    Raises:
        ValueError: if the numbers of heads differ.
    """
    modules = dict(network.named_modules())
    for name, theirs in origin.named_modules():
        before, after = (getattr(module, "num_heads", None) for module in (theirs, modules.get(name)))
        if None not in (before, after) and before != after and _share_matrices(theirs, modules[name]):
            raise _other_heads(name, before, after)


def check_heads_of_tables(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Check the same of weights by the network's names, whose number of heads only relative position biases show.

    Args:
        weights: those of a network of the same width.
        network: network to load into.

    Raises:
        ValueError: if the numbers of heads differ.
    """
    for name, module in network.named_modules():
        table = weights.get(f"{name}.table")
        if isinstance(module, RelativePositionBias) and table is not None:
            before, after = table.shape[1], module.table.shape[1]
            if before != after:
                raise _other_heads(name.rpartition(".")[0], before, after)


def _other_heads(name: str, before: object, after: object) -> ValueError:
    return ValueError(
        f"the weights have {before} attention heads in {name}, this network has {after}: their features would be "
        "others; set num_heads to that of the weights"
    )


def _share_matrices(one: nn.Module, other: nn.Module) -> bool:
    shapes = {name: value.shape for name, value in other.named_parameters()}
    return any(value.dim() > 1 and shapes.get(name) == value.shape for name, value in one.named_parameters())
