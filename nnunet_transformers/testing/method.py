"""Check of a pretraining method's contract, for authors of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..architectures import create_network
from ..pretraining.data.index import PreparedCase, PreparedIndex
from ..pretraining.encoder_pretraining import EncoderPretraining
from ..weights import EncoderCheckpoint, load_encoder_weights
from ._require import require


class Batches(LightningDataModule):
    """Data module whose epochs are a list of given batches.

    Args:
        batches: batches of an epoch.
        batch_size: samples per batch.
        index: index of the images, which checkpoints describe.
        attributes: further attributes of the data module that the method reads.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        batch_size: int = 2,
        index: PreparedIndex | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.batches, self.batch_size, self.index = list(batches), batch_size, index
        for name, value in (attributes or {}).items():
            setattr(self, name, value)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(cast("Dataset[Any]", self.batches), batch_size=None)


def synthetic_index(axes: int = 3, channels: int = 1) -> PreparedIndex:
    """Build the index of one prepared image of 1 mm."""
    return PreparedIndex(
        cases=(PreparedCase("case", (channels, *[1] * axes)),),
        skipped=(),
        channels=("image",) * channels,
        spacing=(1.0,) * axes,
        normalization=("ZScoreNormalization",) * channels,
    )


def check_method(
    method_class: type[EncoderPretraining],
    batches: Sequence[Any],
    arguments: Mapping[str, Any] | None = None,
    batch_size: int = 2,
    index: PreparedIndex | None = None,
    data: Mapping[str, Any] | None = None,
    steps: int = 3,
) -> None:
    """Check that a pretraining method fulfils the contract of ``EncoderPretraining``.

    - Its loss is a finite scalar, and every trainable parameter gets a finite gradient from one of the batches.
    - The target network, if there is one, gets no gradient and follows the online network by EMA.
    - The same seed gives the same weights after training.
    - Its checkpoints load with the same content, and encoder checkpoints fill stem and encoder of their network.

    Args:
        method_class: class of the method.
        batches: batches of the layout of its data module; together they give all trainable parameters a gradient.
        arguments: arguments of the class; choose a small network.
        batch_size: samples per batch.
        index: index of the images; by default one volume.
        data: further attributes of the data module that the method reads.
        steps: optimiser steps to take, at least 2.

    Raises:
        AssertionError: if the method breaks the contract; states where.

    Examples:
        >>> network = {"patch_embed_stride": 2, "num_stages": 2, "window_sizes": 4}
        >>> image = torch.randn(2, 1, 16, 16, 16)
        >>> batch = [(image, image, torch.arange(2)), (image + 1, image, torch.arange(2))]
        >>> check_method(QTSSL, [batch], {"patch_size": (16, 16, 16), "network_overrides": network})
    """

    def build() -> EncoderPretraining:
        torch.manual_seed(0)
        return method_class(**(arguments or {}))

    def train() -> tuple[EncoderPretraining, _TargetCheck]:
        method, target_check = build(), _TargetCheck()
        given = [batches[step % len(batches)] for step in range(steps)]
        torch.manual_seed(1)
        _trainer(target_check).fit(method, Batches(given, batch_size, index or synthetic_index(), data))
        return method, target_check

    _check_gradients(build(), batches)
    method, target_check = train()
    if method.target is not None:
        require(bool(target_check.moves), "the target network never moved: call super().optimizer_step()")
    again, _ = train()
    for name, value in again.state_dict().items():
        require(torch.equal(value, method.state_dict()[name]), f"the same seed gave other weights: {name}")
    with TemporaryDirectory() as folder:
        _check_checkpoints(method, index or synthetic_index(), Path(folder))


def _trainer(callback: Callback) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )


def _check_gradients(method: EncoderPretraining, batches: Sequence[Any]) -> None:
    method.train()
    for batch in batches:
        loss = method.training_step(batch, 0)
        require(loss.dim() == 0 and bool(loss.isfinite()), f"the loss must be a finite scalar, got {loss}")
        loss.backward()
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            require(parameter.grad is None, f"frozen, but got a gradient: {name}")
            continue
        if parameter.grad is None:
            raise AssertionError(f"trainable, but got no gradient; freeze it or use it in the loss: {name}")
        require(bool(parameter.grad.isfinite().all()), f"got a gradient that is not finite: {name}")
    if method.target is not None:
        trainable = [name for name, parameter in method.target.named_parameters() if parameter.requires_grad]
        require(not trainable, f"the target network must not be trained by gradients: {trainable}")


class _TargetCheck(Callback):
    """Check after each step that target = tau * target + (1 - tau) * online, with one tau for all parameters.

    Attributes:
        moves: 1 - tau of each step in which the target moved.
    """

    def __init__(self) -> None:
        self.moves: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.before = self._weights(module)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        after, online = self._weights(module), dict(module.named_parameters())
        steps = {name: after[name] - self.before[name] for name in after}
        ways = {name: online[name.removeprefix("target.")].detach().double() - self.before[name] for name in after}
        length = sum(float(way.square().sum()) for way in ways.values())
        if length == 0:
            return
        share = sum(float((steps[name] * ways[name]).sum()) for name in steps) / length
        if abs(share) < 1e-9:
            require(not any(step.any() for step in steps.values()), "the target network moves away from the online one")
            return
        require(0 < share < 1 + 1e-6, f"the target network moved by {share} of the way to the online network")
        for name, step in steps.items():
            # weights are stored in single precision
            close = torch.allclose(step, share * ways[name], rtol=1e-2, atol=1e-6 * float(1 + after[name].abs().max()))
            require(close, f"the target network does not follow the online network by EMA: {name}")
        self.moves.append(share)

    @staticmethod
    def _weights(module: LightningModule) -> dict[str, Tensor]:
        named = module.named_parameters()
        return {name: value.detach().double() for name, value in named if name.startswith("target.")}


def _check_checkpoints(method: EncoderPretraining, index: PreparedIndex, folder: Path) -> None:
    checkpoints = method.checkpoints(index, {"epochs": 1})
    require(bool(checkpoints), "checkpoints() must give a file after training without validation")
    for name, checkpoint in checkpoints.items():
        checkpoint.save(folder / name)
        loaded = type(checkpoint).load(folder / name)
        require(set(loaded.weights) == set(checkpoint.weights), f"{name} lost weights")
        for weight, value in checkpoint.weights.items():
            require(torch.equal(loaded.weights[weight], value), f"{name} changed {weight}")
        if isinstance(loaded, EncoderCheckpoint):
            require(loaded.method == type(method).__name__, f"{name} states the method {loaded.method!r}")
            network = create_network(loaded.name, loaded.input_channels, 2, loaded.patch_size, **loaded.overrides)
            report = load_encoder_weights(network, loaded)
            for part in (f"{network.key_to_stem}.", f"{network.key_to_encoder}."):
                covered = report.coverage(dict(network.named_parameters()), part)
                require(covered == 1, f"{name} fills only {covered:.0%} of the parameters of {part}*")
            require(not report.adapted, f"{name} does not fit its own network: {report.adapted}")
