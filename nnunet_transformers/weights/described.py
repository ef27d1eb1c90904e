"""Build the networks that files describe, without memory at first: a description can claim a network of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor, nn

from .._meta import without_data

Network = TypeVar("Network", bound=nn.Module)


def build_described(build: Callable[[], Network], what: str) -> Network:
    """Build a network on the meta device from a description that a file holds.

    Args:
        build: builds the network.
        what: the description in words, for messages.

    Raises:
        ValueError: if there is no such network, whatever its constructor raises.
    """
    try:
        with without_data():
            return build()
    except (ValueError, OSError):
        raise
    except Exception as error:  # values of other types or sizes can make a constructor raise anything
        raise ValueError(f"{what} describes no network that can be built: {error!r}") from error


def build_filled(build: Callable[[], Network], weights: Mapping[str, Tensor], what: str) -> Network:
    """Build a network and load its weights, if their names and shapes are those of the network.

    Args:
        build: builds the network with random weights.
        weights: all of its parameters and buffers.
        what: the description in words, for messages.

    Raises:
        ValueError: if there is no such network, or it has other weights.
    """
    claimed = {name: tuple(value.shape) for name, value in build_described(build, what).state_dict().items()}
    differing = claimed.items() ^ {(name, tuple(value.shape)) for name, value in weights.items()}
    if differing:
        names = sorted({name for name, _ in differing})
        raise ValueError(f"{what} describes another network than that of its weights: {', '.join(names[:4])} differ")
    network = build()
    network.load_state_dict(weights)
    return network
