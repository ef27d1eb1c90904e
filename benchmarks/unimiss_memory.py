"""Memory of UniMiSS's recipe: what a training step keeps for its backward pass, counted on the meta device.

    python benchmarks/unimiss_memory.py > benchmarks/results/unimiss_memory.json

Counts the storages that autograd saves, once each, for a batch of 24 of each kind in float32; parameters, gradients,
AdamW's moments and the target network are counted apart. Workspaces and fragmentation come on top on a GPU.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from nnunet_transformers.pretraining.methods.unimiss import UniMiSS

BATCH, GB = 24, 1e9
SIZES = {"2d": (3, 224, 224), "3d": (1, 16, 96, 96)}


def saved(module: UniMiSS, size: tuple[int, ...]) -> float:
    """Return the bytes kept for the backward pass of a batch, without the parameters."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no storage takes the place of another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    batch = [torch.empty(BATCH, *size) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.losses(batch)
    return sum(sizes.values())


def main() -> None:
    rows = {}
    for network in ("mit_7", "mit_22"):
        for checkpointing in (False, True):
            overrides = {"drop_path_rate": 0.1, "activation_checkpointing": checkpointing}
            with torch.device("meta"):
                module = UniMiSS(network, network_overrides=overrides)
                name = f"{network}{', activation checkpointing' * checkpointing}"
                rows[name] = {f"{kind}_gb": round(saved(module, size) / GB, 1) for kind, size in SIZES.items()}
            trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
            everything = sum(p.numel() for p in module.parameters())
            rows[name]["weights_gb"] = round(4 * (everything + 3 * trained) / GB, 1)
    print(json.dumps({"batch": BATCH, "activations_and_weights": rows}, indent=1))


if __name__ == "__main__":
    main()
