"""Freezing and layer-wise learning rates of the encoder that initial weights fill; what they leave out is trained."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from timm.optim import param_groups_layer_decay
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ..architectures import SegmentationNetwork


class LoadedEncoder:
    """Stem and encoder of a network, as far as initial weights fill them.

    Args:
        network: network that the weights are loaded into.
        fresh: names of parameters of stem and encoder that keep their initialisation.
    """

    def __init__(self, network: SegmentationNetwork, fresh: Collection[str] = ()) -> None:
        self._network = network
        self._parts = (f"{network.key_to_stem}.", f"{network.key_to_encoder}.")
        names = [name for name, _ in network.named_parameters() if name.startswith(self._parts)]
        self._names = set(names).difference(fresh)
        self._ids = {id(network.get_parameter(name)) for name in self._names}

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Groups for the optimiser: rates of what was loaded decrease from stage to stage, all others are full.

        Args:
            weight_decay: weight decay of all but norms, biases and the network's ``no_weight_decay``.
            layer_decay: factor of the learning rate from one stage of the encoder to the one before it.
        """
        network = self._network
        tables = network.no_weight_decay()
        groups: list[dict[str, Any]] = []
        for group in param_groups_layer_decay(network, weight_decay, tables, layer_decay=layer_decay):
            for is_loaded in (True, False):
                members = [parameter for parameter in group["params"] if (id(parameter) in self._ids) is is_loaded]
                if members:
                    scale = group["lr_scale"] if is_loaded else 1.0
                    groups.append({**group, "params": members, "lr_scale": scale})
        return groups

    def freeze(self) -> None:
        """Freeze the parameters for good."""
        for name in self._names:
            self._network.get_parameter(name).requires_grad_(False)

    def freeze_statistics(self) -> None:
        """Keep the statistics of the batch norms that were loaded, until the next ``train()``."""
        for name, module in self._network.named_modules():
            own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
            if isinstance(module, _BatchNorm) and f"{name}.".startswith(self._parts) and self._names.issuperset(own):
                module.eval()

    def set_rates_to_zero(self, optimizer: Optimizer) -> None:
        """Freeze the parameters for a step, through the rate: DDP does not notice a change of ``requires_grad``.

        Raises:
            ValueError: if a group of the optimiser holds both such parameters and others.
        """
        for group in optimizer.param_groups:
            members = {id(parameter) in self._ids for parameter in group["params"]}
            if len(members) > 1:
                raise ValueError("the optimiser has a group with parameters of encoder and decoder")
            if members == {True}:
                group["lr"] = 0.0
