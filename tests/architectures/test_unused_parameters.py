"""Every parameter of a network is in the graph of a training step: one that is not stops DistributedDataParallel."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nnunet_transformers.architectures import create_network, get_network, list_networks
from nnunet_transformers.testing.network import shallow
from tests.architectures.test_networks import COMPILED, SMALLEST

# of the smallest of each class the contract finds gradients, with data
CLASSES = [get_network(name).network_class for name in SMALLEST]
OTHERS = [name for name in list_networks() if name not in SMALLEST and get_network(name).network_class in CLASSES]


@pytest.mark.parametrize("name", OTHERS)
def test_every_parameter_is_used(name):
    ndim = max(get_network(name).dimensions)
    patch_size = COMPILED[f"{ndim}d"]
    with torch.device("meta"):
        network = create_network(name, 1, 3, patch_size, deep_supervision=True, **shallow(name, ndim)).train()
        outputs = tree_leaves(network(torch.randn(2, 1, *patch_size)))
    nodes = [output.grad_fn for output in outputs]
    seen, reached = set(nodes), set()
    while nodes:
        node = nodes.pop()
        reached.add(getattr(node, "variable", None))
        following = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= following
        nodes += following
    assert not [key for key, parameter in network.named_parameters() if parameter not in reached]
