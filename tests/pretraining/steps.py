"""Optimiser steps of a method on given batches, recorded by a callback of Lightning's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from nnunet_transformers.testing.method import Batches


class Recorder(Callback):
    """Record weights before and after each batch, and parameter groups, gradients and moments at each step.

    Attributes:
        weights: state dicts, the first from before training, one more after each batch.
        groups: for each optimiser step the settings of each parameter group.
        gradients: for each optimiser step the gradients before clipping, by name.
        moments: for each optimiser step the first moment of Adam, by name.
    """

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.groups: list[list[dict[str, Any]]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.moments: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.weights.append(_copy(module))

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.groups.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.weights.append(_copy(module))
        state = trainer.optimizers[0].state
        names = {p: n for n, p in module.named_parameters()}
        self.moments.append({names[p]: s["exp_avg"].clone() for p, s in state.items() if "exp_avg" in s})

    def settings(self, name: str) -> list[float]:
        """Return a setting of the first parameter group at each step."""
        return [groups[0][name] for groups in self.groups]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def train(
    module: LightningModule, batches: Sequence[Any], epochs: int = 1, batch_size: int = 3, **kwargs: Any
) -> Recorder:
    """Train in double precision on the CPU."""
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision="64-true",
        callbacks=[recorder],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        **kwargs,
    )
    trainer.fit(module, Batches(batches, batch_size))
    return recorder


class Doubling(SingleDeviceStrategy):
    """Stands in for several processes: the mean of theirs, where it is formed, is twice this one's value."""

    is_distributed = True

    def reduce(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * tensor


def check_logs_means_of_processes(create: Callable[[], LightningModule], batch: Any) -> None:
    """Check that everything that a method logs of a batch is the mean over the processes."""
    logged = []
    for strategy in ("auto", Doubling("cpu")):
        module = create()
        vars(module).pop("log_dict", None)  # tests put their own there
        train(module, [batch], strategy=strategy, use_distributed_sampler=False)
        logged.append({name: value.item() for name, value in module.trainer.callback_metrics.items()})
    alone, together = logged
    assert alone["loss"]
    assert together == {name: 2 * value for name, value in alone.items()}


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Compute a cosine from ``start`` at step 0 to ``end`` at the last of ``steps``."""
    return end + (start - end) * (1 + math.cos(math.pi * step / (steps - 1))) / 2


def warmup_cosine(steps: int, warmup: int, highest: float, end: float = 0.0) -> list[float]:
    """Compute the learning rates of a linear warm-up up to ``highest`` and a cosine decay to ``end``."""
    rising = [highest * (step + 1) / warmup for step in range(warmup)]
    return rising + [cosine(step, steps - warmup, highest, end) for step in range(steps - warmup)]


def check_target_follows(recorder: Recorder, pairs: dict[str, str], taus: Sequence[float]) -> None:
    """Check that target = tau * target + (1 - tau) * online after each step.

    Args:
        recorder: recorder of a run with one batch per step.
        pairs: prefixes of online weights by the prefixes of the target weights that follow them.
        taus: momentum of each step.
    """
    assert len(recorder.weights) == len(taus) + 1
    moved = 0
    for before, after, tau in zip(recorder.weights, recorder.weights[1:], taus, strict=False):
        for target, online in pairs.items():
            names = [n for n in after if n.startswith(target) and not _is_buffer(n)]
            assert names, target
            for name in names:
                twin = online + name.removeprefix(target)
                torch.testing.assert_close(after[name], tau * before[name] + (1 - tau) * after[twin])
                moved += int(not torch.equal(after[twin], before[twin]))
    assert moved


def _is_buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def separate(target: nn.Module) -> None:
    """Perturb a target network, which starts as a copy of the online network."""
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean cross-entropy of classes (rows,) or probabilities (rows, classes), without torch's."""
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    if targets.dim() == 1:
        return -log_probabilities[torch.arange(len(logits)), targets].mean()
    return -(targets * log_probabilities).sum(1).mean()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Compute cosine similarities over the last axis."""
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())
