"""Attention heads: weights have the same shapes whatever their number, but other features."""

from __future__ import annotations

from torch import nn


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
            raise ValueError(
                f"the weights have {before} attention heads in {name}, this network has {after}: their features would "
                "be others; set num_heads to that of the weights"
            )


def _share_matrices(one: nn.Module, other: nn.Module) -> bool:
    shapes = {name: value.shape for name, value in other.named_parameters()}
    return any(value.dim() > 1 and shapes.get(name) == value.shape for name, value in one.named_parameters())
