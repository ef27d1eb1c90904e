"""Profile a network by layer: seconds, and the floor of each layer.

    python -m nnunet_transformers.benchmarking.profile qt_unet_tiny --patch-size 96,96,96

Each operation of the forward and the backward pass is timed separately and attributed to its layer.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .attribution import LayerTracker
from .costs import Cost, operation_cost
from .machine import Rates, fastest, mark, measure_rates, seconds_between, synchronise
from .networks import build_on

MAX_ROWS = 30


@dataclass(frozen=True)
class LayerTime:
    """A layer's share of a pass.

    Attributes:
        layer: level and class, see ``attribution.layer_names``.
        seconds: time of all its operations.
        floor_s: lower bound on that time, see ``roofline.measure_roofline``.
        cost: multiply-adds and bytes that determine the floor.
        operations: seconds by name of the operation, longest first.
    """

    layer: str
    seconds: float
    floor_s: float
    cost: Cost = field(default_factory=Cost)
    operations: dict[str, float] = field(default_factory=dict)


@dataclass
class _Record:
    layer: str
    operation: str
    cost: Cost
    floor_s: float
    span: tuple

    @property
    def seconds(self) -> float:
        return seconds_between(*self.span)


class OperationRecorder(TorchDispatchMode):
    """Context that records time, cost and layer of every operation in ``records``."""

    def __init__(self, tracker: LayerTracker, rates: Rates, device: torch.device) -> None:
        super().__init__()
        self.tracker, self.rates, self.device = tracker, rates, device
        self.records: list[_Record] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        layer, start = self.tracker.current_layer(), mark(self.device)
        result = func(*args, **kwargs)
        end = mark(self.device)
        cost = operation_cost(func, args, kwargs, result)
        floor_s = self.rates.floor(cost.multiply_adds, cost.bytes)
        self.records.append(_Record(layer, func._overloadpacket.__name__, cost, floor_s, (start, end)))
        return result


def run_pass(network: nn.Module, image: Tensor, backward: bool) -> None:
    """Run the forward pass without gradients, or forward and backward from the mean of the outputs."""
    if not backward:
        with torch.no_grad():
            network(image)
        return
    network.zero_grad()
    outputs = network(image)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    sum(output.mean() for output in outputs).backward()


def profile_layers(network: nn.Module, image: Tensor, backward: bool, rates: Rates, runs: int = 3) -> list[LayerTime]:
    """Measure the seconds of each layer, longest first. Their sum is the time of the pass without Python's overhead.

    The shortest layers are merged into one row, so that there are at most ``MAX_ROWS``. On a GPU, an operation too
    short to keep it busy counts with its launch time.

    Args:
        network: any network on the device of the image, in the mode (training or evaluation) to be measured; not
            compiled, as compilation hides the operations.
        image: (batch, channels, *size).
        backward: run forward and backward rather than forward without gradients.
        rates: rates of the device, for the floors.
        runs: number of passes after a warm-up; the fastest is returned.

    Raises:
        ValueError: if the network is compiled.
    """
    if any(isinstance(module, torch._dynamo.OptimizedModule) for module in network.modules()):
        raise ValueError(f"{type(network).__name__} is compiled; profile it before torch.compile")
    run_pass(network, image, backward)
    passes = []
    for _ in range(runs):
        with LayerTracker(network) as tracker, OperationRecorder(tracker, rates, image.device) as recorder:
            run_pass(network, image, backward)
        synchronise(image.device)
        passes.append(recorder.records)
    records = min(passes, key=lambda records: sum(record.seconds for record in records))
    by_layer: dict[str, list[_Record]] = {}
    for record in records:
        by_layer.setdefault(record.layer, []).append(record)
    rows = sorted((_layer_time(*item) for item in by_layer.items()), key=lambda row: -row.seconds)
    if len(rows) > MAX_ROWS:
        others = [record for row in rows[MAX_ROWS - 1 :] for record in by_layer[row.layer]]
        rows = [*rows[: MAX_ROWS - 1], _layer_time(f"{len(rows) - MAX_ROWS + 1} short layers", others)]
    return rows


def _layer_time(layer: str, records: list[_Record]) -> LayerTime:
    operations: dict[str, float] = defaultdict(float)
    for record in records:
        operations[record.operation] += record.seconds
    cost = sum((record.cost for record in records), Cost())
    floor_s = sum(record.floor_s for record in records)
    longest_first = dict(sorted(operations.items(), key=lambda item: -item[1]))
    return LayerTime(layer, sum(operations.values()), floor_s, cost, longest_first)


def format_profile(rows: list[LayerTime], measured_s: float) -> str:
    """Format a table of the rows, their sum, and the time of the pass without profiling."""
    lines = [f"{'layer':48} {'ms':>8} {'floor':>8} {'lost':>8} {'GMACs':>8} {'MB':>8}  operations"]
    cost = sum((row.cost for row in rows), Cost())
    total = LayerTime("sum", sum(row.seconds for row in rows), sum(row.floor_s for row in rows), cost)
    for row in (*rows, total):
        longest = list(row.operations.items())[:4]
        operations = ", ".join(f"{name} {s / row.seconds:.0%}" for name, s in longest if s > row.seconds / 100)
        times = " ".join(f"{1000 * s:8.2f}" for s in (row.seconds, row.floor_s, row.seconds - row.floor_s))
        figures = f"{row.cost.multiply_adds / 1e9:8.3f} {row.cost.bytes / 1e6:8.1f}"
        lines.append(f"{row.layer:48} {times} {figures}  {operations}")
    lines.append(f"{'measured without the profile':48} {1000 * measured_s:8.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="name of a network, as for `nnunet-transformers benchmark`")
    parser.add_argument("--patch-size", default="96,96,96", help="voxels per axis, 2 or 3 of them (%(default)s)")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="forward alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    patch_size = tuple(map(int, arguments.patch_size.split(",")))
    device = torch.device(arguments.device)
    network = build_on(device, arguments.network, patch_size, arguments.channels, arguments.classes)
    image = torch.randn(arguments.batch_size, arguments.channels, *patch_size, device=device)
    rates = measure_rates(device)
    print(f"{rates.multiply_adds_per_second / 1e9:.0f} G multiply-adds/s, {rates.bytes_per_second / 1e9:.1f} GB/s")
    for backward in (False,) if arguments.forward else (False, True):
        network.train(backward)
        rows = profile_layers(network, image, backward, rates, arguments.runs)
        measured_s = fastest(partial(run_pass, network, image, backward), device, arguments.runs, seconds=60)
        print(f"\n{arguments.network}, {'forward and backward' if backward else 'forward'}")
        print(format_profile(rows, measured_s))


if __name__ == "__main__":
    main()
