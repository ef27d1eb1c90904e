"""The floor of a network's time, the share of it that is reached, and where the rest goes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from .costs import Cost
from .machine import Rates, fastest
from .profile import profile_layers, run_pass

GAPS = 3
SECONDS = 60


def summarise(network: nn.Module, image: Tensor, rates: Rates, runs: int = 3) -> dict[str, dict[str, Any]]:
    """Floor and measured time of a network, forward without gradients and forward with backward.

    The floor is what the network's layers take at least on this machine in this precision, if each matrix product,
    convolution and attention is one operation that finds its operands in main memory and leaves its result there:
    multiply-adds at the measured rate of matrix products, or the bytes of operands and results at the measured
    bandwidth, whichever takes longer (Williams et al., https://doi.org/10.1145/1498765.1498785), summed over these
    operations. Norms, activations, additions and copies add nothing, nor do the scores and the bias of attention
    (``costs.operation_cost``). Backward's operations are those that the network's implementation runs.

    No implementation of the same operations goes below that, with one exception: what stays in the caches from one
    operation to the next, or is fused over several of them, moves faster or not at all. ``multiply_adds_s``, the
    multiply-adds alone, holds for that too.

    Args:
        network: any, on the device of the image; not compiled.
        image: (batch, channels, *size); run under ``torch.autocast`` to have its precision.
        rates: of the device in that precision, ``machine.measure_rates``.
        runs: measurements of each figure; the fastest counts.

    Returns:
        under "forward" and "forward_backward": "multiply_adds", "bytes", "floor_s", "multiply_adds_s", "measured_s",
        "share" (floor over measured time) and "gaps", the three layers that lose most time over their floor, each with
        "layer", "seconds" and "floor_s".

    Raises:
        ValueError: on a compiled network.
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
