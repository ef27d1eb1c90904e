"""A training step as nnU-Net takes it: autocast, Dice and cross-entropy with deep supervision, scaler, optimiser."""

from __future__ import annotations

import gc
import time
import warnings
from functools import cached_property
from typing import Any, cast

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch._dynamo.utils import counters

from nnunet_transformers.benchmarking.machine import synchronise
from nnunet_transformers.benchmarking.measure import PRECISIONS, time_actions

from .rows import NUM_CLASSES, Row, build

# nnU-Net's norm, to which gradients are clipped
CLIP = 12
WARM_UP = 2
SECONDS = 0.7


def release(device: torch.device) -> None:
    """Free what earlier rows left, and forget their peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


class TrainingStep:
    """One network with all that a training step needs.

    Args:
        row: what to train.
        compiled: whether through ``torch.compile``, as nnU-Net does.
    """

    def __init__(self, row: Row, compiled: bool = False) -> None:
        self.device = torch.device(row.device)
        release(self.device)
        torch.backends.cudnn.benchmark = True  # as nnU-Net trains
        self.dtype = PRECISIONS[row.precision]
        network, self.patch_size = build(row)
        self.plain = network.train()
        self.network = cast(nn.Module, torch.compile(network)) if compiled else network
        # the same optimiser for all, with the choice of kernel of our trainers
        fused = True if row.device == "cpu" else None
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=fused)
        self.scaler = torch.amp.GradScaler(row.device, enabled=self.dtype is torch.float16 and row.device == "cuda")
        self.image = torch.randn(row.batch_size, 1, *self.patch_size, device=self.device)
        self.compiled = compiled
        self.outputs: Any = None
        self.loss: Tensor | None = None

    @cached_property
    def _criterion(self) -> tuple[nn.Module, Any]:
        """The loss and targets of the outputs' sizes."""
        loss: nn.Module = DC_and_CE_loss(
            {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
            {},
            dice_class=MemoryEfficientSoftDiceLoss,
        )
        if self.compiled:
            loss.dc = cast(nn.Module, torch.compile(cast(nn.Module, loss.dc)))

        def target(output: Tensor) -> Tensor:
            shape = (output.shape[0], 1, *output.shape[2:])
            return torch.randint(NUM_CLASSES, shape, device=self.device).float()

        if isinstance(self.outputs, Tensor):
            return loss, target(self.outputs)
        weights = [0.5**n for n in range(len(self.outputs))]
        weights[-1] = 0.0
        weights = [weight / sum(weights) for weight in weights]
        return DeepSupervisionWrapper(loss, weights), [target(output) for output in self.outputs]

    def forward(self) -> None:
        """Predict and compute the loss, whose sums need its graph."""
        self.optimiser.zero_grad(set_to_none=True)
        enabled = self.dtype is not None
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled):
            self.outputs = self.network(self.image)
            loss, targets = self._criterion
            self.loss = loss(self.outputs, targets)

    def backward(self) -> None:
        """Propagate the scaled loss back."""
        assert self.loss is not None
        self.scaler.scale(self.loss).backward()
        self.outputs = None

    def optimise(self) -> None:
        """Unscale and clip the gradients, and change the weights."""
        self.scaler.unscale_(self.optimiser)
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), CLIP)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def run(self) -> None:
        """Take one step."""
        self.forward()
        self.backward()
        self.optimise()

    def time(self, seconds: float) -> dict[str, Any]:
        """Seconds of the step's parts, samples a second and peak memory in bytes."""
        peak = self.peak_bytes()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        forward, backward, optimise = time_actions([self.forward, self.backward, self.optimise], self.device, seconds)
        step = forward + backward + optimise
        assert self.loss is not None
        return {
            "patch_size": self.patch_size,
            "parameters": sum(p.numel() for p in self.plain.parameters()),
            "forward_s": forward,
            "backward_s": backward,
            "optimiser_s": optimise,
            "step_s": step,
            "samples_per_s": len(self.image) / step,
            "peak_bytes": self.peak_bytes(),
            # cuDNN tries its kernels there, of which some need much memory
            "first_peak_bytes": peak,
            "loss": self.loss.item(),
        }

    def peak_bytes(self) -> int:
        """Peak of the allocated memory in bytes; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def waits(self) -> list[str]:
        """Places in forward, loss and backward where the host waits for the device, as PyTorch reports them."""
        if self.device.type != "cuda":
            return []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.forward()
                self.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.optimise()
        return sorted({f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})


def eager(row: Row) -> dict[str, Any]:
    """Measure a training step."""
    step = TrainingStep(row)
    for _ in range(1 if row.tiny else WARM_UP):
        step.run()
    return {**step.time(0 if row.tiny else SECONDS), "waits": step.waits()}


_compiled: TrainingStep | None = None


def prepare_compiled(row: Row) -> dict[str, Any]:
    """Compile a network by a training step, and keep it."""
    global _compiled
    counters.clear()
    start = time.perf_counter()
    _compiled = TrainingStep(row, compiled=True)
    # others compile at the same time, so cuDNN would choose by disturbed measurements
    torch.backends.cudnn.benchmark = False
    _compiled.run()
    synchronise(_compiled.device)
    seconds = time.perf_counter() - start
    # as several networks wait for their turn
    _compiled.loss = None
    _compiled.optimiser.zero_grad()
    release(_compiled.device)
    return {
        "compile_s": seconds,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": dict(counters["graph_break"]),
    }


def compiled(row: Row) -> dict[str, Any]:
    """Measure what ``prepare_compiled`` has compiled."""
    assert _compiled is not None
    torch.backends.cudnn.benchmark = True
    before = counters["stats"]["unique_graphs"]
    for _ in range(1 if row.tiny else 1 + WARM_UP):
        _compiled.run()
    figures = _compiled.time(0 if row.tiny else SECONDS)
    return {**figures, "recompiles": counters["stats"]["unique_graphs"] - before}
