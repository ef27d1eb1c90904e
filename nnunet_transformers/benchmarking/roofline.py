"""Roofline of a network: the floor of its time, the share that it reaches, and the layers with the largest gaps."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from .costs import Cost
from .machine import Rates, fastest
from .profile import profile_layers, run_pass

GAPS = 3
SECONDS = 60


def measure_roofline(network: nn.Module, image: Tensor, rates: Rates, runs: int = 3) -> dict[str, dict[str, Any]]:
    """Measure floor and time of a network, for forward without gradients and for forward with backward.

    The floor is a lower bound on the time of the network's layers on this machine in this precision, if each matrix
    product, convolution and attention is one operation that reads its operands from main memory and writes its result
    there. Each operation takes its multiply-adds at the measured rate of matrix products or its bytes at the measured
    bandwidth, whichever is longer (Williams et al., https://doi.org/10.1145/1498765.1498785); the floor is the sum.
    Norms, activations, additions and copies add nothing, nor do the scores and the bias of attention
    (``costs.operation_cost``). The operations of the backward pass are those that the implementation runs.

    No implementation of the same operations is faster, with one exception: data that stay in the caches between
    operations, or that several operations fuse, move faster or not at all. ``multiply_adds_s``, the time of the
    multiply-adds alone, is a lower bound in this case too.

    Args:
        network: any network on the device of the image; not compiled.
        image: (batch, channels, *size); call under ``torch.autocast`` to measure its precision.
        rates: rates of the device in that precision, see ``machine.measure_rates``.
        runs: number of measurements of each figure; the fastest counts.

    Returns:
        under "forward" and "forward_backward": "multiply_adds", "bytes", "floor_s", "multiply_adds_s", "measured_s",
        "share" (floor over measured time) and "gaps", the three layers that exceed their floor by most, each with
        "layer", "seconds" and "floor_s".

    Raises:
        ValueError: if the network is compiled.
    """
    training = network.training
    summary = {}
    try:
        for key, backward in (("forward", False), ("forward_backward", True)):
            network.train(backward)
            rows = profile_layers(network, image, backward, rates, runs)
            measured_s = fastest(partial(run_pass, network, image, backward), image.device, runs, SECONDS)
            cost, floor_s = sum((row.cost for row in rows), Cost()), sum(row.floor_s for row in rows)
            gaps = sorted(rows, key=lambda row: row.floor_s - row.seconds)[:GAPS]
            summary[key] = {
                "multiply_adds": cost.multiply_adds,
                "bytes": cost.bytes,
                "floor_s": floor_s,
                "multiply_adds_s": cost.multiply_adds / rates.multiply_adds_per_second,
                "measured_s": measured_s,
                "share": floor_s / measured_s,
                "gaps": [{"layer": row.layer, "seconds": row.seconds, "floor_s": row.floor_s} for row in gaps],
            }
    finally:
        network.train(training)
        network.zero_grad()
    return summary
