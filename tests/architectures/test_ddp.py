"""A network in two processes: this one, and one that imports this file, so it imports little."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from nnunet_transformers.architectures import create_network


def test_gradients_are_shared(tmp_path):
    """nnU-Net's own DDP is for CUDA; the network under DDP with gloo, with and without activation checkpointing."""
    store = str(tmp_path / "store")
    other = mp.spawn(_second, args=(store,), join=False)
    _run(0, store)
    assert other.join()


def _second(_, store):
    torch.set_num_threads(1)
    _run(1, store)


def _run(rank, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        _compare_gradients(rank)
    finally:
        dist.destroy_process_group()  # also ends a wait of the other process


def _compare_gradients(rank):
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        options = {"deep_supervision": True, "activation_checkpointing": activation_checkpointing}
        network = DistributedDataParallel(create_network("qt_unet_tiny", 1, 2, (32, 32), **options))
        torch.manual_seed(rank)
        for _ in range(2):
            network.zero_grad()
            sum(output.square().mean() for output in network(torch.randn(1, 1, 32, 32))).backward()
        gradient = network.module.stem.proj.weight.grad.flatten()
        gathered = [torch.empty_like(gradient) for _ in range(2)]
        dist.all_gather(gathered, gradient)
        assert torch.equal(gathered[0], gathered[1])
