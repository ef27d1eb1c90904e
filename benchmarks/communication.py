"""What two processes send each other in a step of training, and what follows for faster links.

    python benchmarks/communication.py [--patch-size 64,64,64] [--output benchmarks/results/communication.json]

Two processes on this machine, DistributedDataParallel over gloo, one sample each. Sent bytes are counted twice: the
gradients' buckets as DDP hands them over, times 2 (n - 1) / n of a ring's all-reduce over n processes (Patarasu and
Yuan, https://doi.org/10.1016/j.jpdc.2008.09.002), and on Linux what the loopback interface sent. Seconds are the
fastest of the steps, with and without exchange (``no_sync``). The table of links is computed: bytes over the rate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from nnunet_transformers.benchmarking.networks import REFERENCE, build_on
from nnunet_transformers.benchmarking.profile import run_pass

NETWORKS = ("qt_unet_tiny", "unet2022_tiny", "mit_7", REFERENCE)
PROCESSES, CHANNELS, CLASSES = 2, 1, 14
GPUS = (2, 8)
# bytes per second in one direction, of the data sheets
LINKS = {
    "NVLink 4 (450 GB/s)": 450e9,
    "PCIe 5.0 x16 (63 GB/s)": 63e9,
    "PCIe 4.0 x16 (31.5 GB/s)": 31.5e9,
    "100 Gbit/s": 12.5e9,
    "10 Gbit/s": 1.25e9,
}
INTERFACES = Path("/proc/net/dev")


def ring_bytes(gradient_bytes: float, processes: int) -> float:
    """What each process sends in a ring's all-reduce."""
    return 2 * (processes - 1) / processes * gradient_bytes


def loopback_bytes() -> int | None:
    """Bytes that the loopback interface has sent; None where the system does not say."""
    if not INTERFACES.exists():
        return None
    counts = dict(line.split(":") for line in INTERFACES.read_text().splitlines() if ":" in line)
    return int({name.strip(): values for name, values in counts.items()}["lo"].split()[8])


def build(name: str, patch_size: Sequence[int]) -> nn.Module:
    """A network of which every parameter gets a gradient, as DDP wants it."""
    network = build_on(torch.device("cpu"), name, patch_size, CHANNELS, CLASSES)
    if name == REFERENCE:  # has the heads of deep supervision in any case
        decoder: Any = network.get_submodule("decoder")
        decoder.deep_supervision = True
    return network


def worker(rank: int, name: str, patch_size: Sequence[int], steps: int, folder: str) -> None:
    """One of the processes; the first writes the figures into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    torch.manual_seed(0)
    network = DistributedDataParallel(build(name, patch_size))
    image = torch.randn(1, CHANNELS, *patch_size)
    sent: list[int] = []

    def count(group, bucket):  # DDP does not know annotations that are text
        sent.append(bucket.buffer().nbytes)
        return allreduce_hook(group, bucket)

    network.register_comm_hook(dist.group.WORLD, count)
    run_pass(network, image, backward=True)  # the first step has buckets of its own
    sent.clear()
    figures: dict[str, float] = {"parameters": sum(p.numel() for p in network.parameters())}
    before = loopback_bytes()
    for key, exchange in (("step_s", True), ("step_without_exchange_s", False)):
        seconds = []
        for _ in range(steps):
            dist.barrier()
            start = time.perf_counter()
            with nullcontext() if exchange else network.no_sync():
                run_pass(network, image, backward=True)
            seconds.append(time.perf_counter() - start)
        figures[key] = round(min(seconds), 4)
        if exchange:
            figures["buckets"], figures["gradient_bytes"] = len(sent) // steps, sum(sent) // steps
            dist.barrier()
            after = loopback_bytes()
            if before is not None and after is not None:
                figures["loopback_bytes"] = round((after - before) / steps / PROCESSES)
    figures["ring_bytes"] = round(ring_bytes(figures["gradient_bytes"], PROCESSES))
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def measure(name: str, patch_size: Sequence[int], steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(name, patch_size, steps, folder), nprocs=PROCESSES)
        return json.loads(Path(folder, "figures.json").read_text())


def tables(networks: dict[str, dict[str, float]]) -> str:
    """Markdown: what was measured, and milliseconds of an exchange on each link."""
    lines = ["| | parameters | gradients, MB | sent by a process, MB: ring | loopback | step, s | without exchange |"]
    lines += ["|---" * 7 + "|"]
    for name, row in networks.items():
        counted = f"{row['loopback_bytes'] / 1e6:.1f}" if "loopback_bytes" in row else "-"
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:.1f} M | {row['gradient_bytes'] / 1e6:.1f} | "
            f"{row['ring_bytes'] / 1e6:.1f} | {counted} | {row['step_s']:.2f} | {row['step_without_exchange_s']:.2f} |"
        )
    lines += ["", f"| exchange over {' and '.join(map(str, GPUS))} GPUs, ms | {' | '.join(LINKS)} |"]
    lines += ["|---" * (len(LINKS) + 1) + "|"]
    for name, row in networks.items():
        cells = [
            " / ".join(f"{1000 * ring_bytes(row['gradient_bytes'], gpus) / rate:.2g}" for gpus in GPUS)
            for rate in LINKS.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch-size", default="64,64,64", help="voxels per axis (%(default)s)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    patch_size = tuple(map(int, arguments.patch_size.split(",")))
    networks = {}
    for name in arguments.networks:
        networks[name] = measure(name, patch_size, arguments.steps)
        print(name, json.dumps(networks[name]), flush=True)
    print(f"\n{tables(networks)}")
    if arguments.output:
        content = {"patch_size": patch_size, "processes": PROCESSES, "torch": torch.__version__, "networks": networks}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
