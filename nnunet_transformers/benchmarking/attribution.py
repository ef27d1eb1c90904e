"""Attribute operations to layers, in the forward and the backward pass.

In the forward pass an operation belongs to the innermost running module. In the backward pass it belongs to the module
that created the running autograd node: autograd numbers its nodes in order of creation, so the nodes of a module are
those whose number lies between its start and its end. This includes functions with a backward pass of their own.
Activation checkpointing runs modules again during the backward pass, where they are attributed as in the forward pass.
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
    """Return a readable layer name for each module of a network, such as "encoder.stages.0 WindowAttention".

    The name consists of the level (the module's path up to its first index) and a class: that of the outermost module
    inside the level whose children are all leaves. A module that contains such layers is named by its own class, to
    which its own operations, such as residual additions, are attributed.

    Args:
        network: any network.

    Returns:
        layer names by module path.
    """
    modules = dict(network.named_modules())
    return {path: _layer_name(modules, path) for path in modules}


def _layer_name(modules: dict[str, nn.Module], path: str) -> str:
    if not path:
        return plain_class(modules[path]).__name__
    parts = path.split(".")
    level = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
    # named_modules() lists a shared module under one of its paths only
    around = (modules.get(".".join(parts[:end])) for end in range(level, len(parts)))
    layer = next((module for module in around if module is not None and _is_layer(module)), modules[path])
    return f"{'.'.join(parts[:level])} {plain_class(layer).__name__}"


def _is_layer(module: nn.Module) -> bool:
    children = list(module.children())
    return bool(children) and not any(list(child.children()) for child in children)


class LayerTracker:
    """Context in which ``current_layer`` returns the running layer of a network."""

    def __init__(self, network: nn.Module) -> None:
        self._names = layer_names(network)
        self._modules = dict(network.named_modules())
        self._stack = [OUTSIDE]
        # number of the first autograd node of each span, and the layer that created the span
        self._nodes, self._layers = [0], [OUTSIDE]
        self._last = OUTSIDE

    def __enter__(self) -> LayerTracker:
        self._handles = []
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._enter(self._names[path])))
            # also if checkpointing stops the second run of a module early
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def current_layer(self) -> str:
        """Return the name of the running layer."""
        node = torch._C._current_autograd_node()
        if len(self._stack) > 1 or torch._C._current_graph_task_id() == -1:
            self._last = self._stack[-1]
        elif node is not None and node.name() != ACCUMULATE:
            self._last = self._layers[bisect_right(self._nodes, node._sequence_nr()) - 1]
        # a sum of gradients is attributed to the layer of its last term
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
        # nodes created by checkpointing during the backward pass are ignored
        if torch._C._current_autograd_node() is None:
            self._nodes.append(torch._C._autograd._get_sequence_nr())
            self._layers.append(self._stack[-1])
