"""Which layer an operation belongs to, in forward and in backward.

Forward, it is the innermost module that runs. Backward, it is the module that made the autograd node that runs:
autograd numbers its nodes in the order in which they are made, so a module's nodes are those with a number between its
beginning and its end. Functions with a backward of their own are nodes like others. Activation checkpointing runs
modules inside of backward, where they count as in forward.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import nn

from ..cpu import plain_class

OUTSIDE = "outside of the network"
# the node that adds a gradient to a parameter; it has no number
ACCUMULATE = "torch::autograd::AccumulateGrad"


def layer_names(network: nn.Module) -> dict[str, str]:
    """A readable name of the layer for each module of a network, as in "encoder.stages.0 WindowAttention".

    It is the level, which is the module's path up to its first index, and a class: of the outermost module there that
    is made of simple ones alone. A module around such layers has its own class; what it does itself (residual
    additions, for instance) counts for that.

    Args:
        network: any.

    Returns:
        from a module's path to its layer.
    """
    modules = dict(network.named_modules())
    return {path: _layer_name(modules, path) for path in modules}


def _layer_name(modules: dict[str, nn.Module], path: str) -> str:
    if not path:
        return plain_class(modules[path]).__name__
    parts = path.split(".")
    level = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    # a part may be missing here where the module has another name too
    around = (modules.get(".".join(parts[:end])) for end in range(level, len(parts)))
    layer = next((module for module in around if module is not None and _is_layer(module)), modules[path])
    return f"{'.'.join(parts[:level])} {plain_class(layer).__name__}"


def _is_layer(module: nn.Module) -> bool:
    children = list(module.children())
    return bool(children) and not any(list(child.children()) for child in children)


class LayerTracker:
    """Context in which ``current_layer`` says what layer of a network runs."""

    def __init__(self, network: nn.Module) -> None:
        self._names = layer_names(network)
        self._modules = dict(network.named_modules())
        self._stack = [OUTSIDE]
        # from which autograd node on which layer made them
        self._nodes, self._layers = [0], [OUTSIDE]
        self._last = OUTSIDE

    def __enter__(self) -> LayerTracker:
        self._handles = []
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._enter(self._names[path])))
            # also when checkpointing stops a module that it runs again half-way
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def current_layer(self) -> str:
        """Name of the layer that runs now."""
        node = torch._C._current_autograd_node()
        if len(self._stack) > 1 or torch._C._current_graph_task_id() == -1:
            self._last = self._stack[-1]
        elif node is not None and node.name() != ACCUMULATE:
            self._last = self._layers[bisect_right(self._nodes, node._sequence_nr()) - 1]
        # sums of gradients count for the layer that the last of them comes from
        return self._last

    def _enter(self, layer: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._stack.append(layer)
            self._note()

        return hook

    def _leave(self, *_: object) -> None:
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        # nodes that checkpointing makes are never run
        if torch._C._current_autograd_node() is None:
            self._nodes.append(torch._C._autograd._get_sequence_nr())
            self._layers.append(self._stack[-1])
