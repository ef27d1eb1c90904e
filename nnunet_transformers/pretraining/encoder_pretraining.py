"""Base class of the pretraining methods: one Lightning step, the EMA target network, optimiser and checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from lightning import LightningModule
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.layers import DropPath
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..runs.callbacks import feature_spread, images_of
from ..runs.schedules import cosine_with_warmup, total_steps
from ..weights.sealed import SealedCheckpoint
from .data.index import PreparedIndex
from .encoder_checkpoint import encoder_checkpoint


class EncoderPretraining(LightningModule, ABC):
    """Base of the pretraining methods: a subclass has hyper-parameters, modules, ``losses`` and ``create_optimizer``.

    ``__init__`` of a subclass calls ``super().__init__()``, then ``save_hyperparameters()``, and assigns the network
    to pretrain to ``encoder``. By default the learning rate rises linearly for ``hparams.warmup_epochs`` epochs and
    falls along a cosine, and ``encoder.pth`` is written after every epoch.

    Attributes:
        strategy: Lightning's strategy on several devices.
        encoder: encoder to pretrain.
        target: EMA target networks by name, see ``create_target``; None for methods without.
        loss_weights: weights of the loss terms; 1 for terms without an entry.
    """

    strategy: ClassVar[str] = "auto"
    encoder: Any
    target: Any

    def __init__(self) -> None:
        super().__init__()
        self.target = None
        self.loss_weights: dict[str, float] = {}

    @property
    def hparams(self) -> AttributeDict:
        """Arguments of the subclass."""
        return cast(AttributeDict, super().hparams)

    @property
    def datamodule(self) -> Any:
        """Data module of the run."""
        return cast(Any, self.trainer).datamodule

    @property
    def network(self) -> Any:
        """Network that ``encoder.pth`` holds, by default ``encoder``; see ``encoder_checkpoint``."""
        return self.encoder

    @abstractmethod
    def losses(self, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss terms of a batch.

        Returns:
            scalar terms by name, before weighting; features (batch, dim), which are monitored for representation
            collapse.
        """

    @abstractmethod
    def create_optimizer(self) -> Optimizer:
        """Build the optimiser with its peak learning rate; ``self.trainer`` is available."""

    def create_schedule(self, optimizer: Optimizer) -> LRScheduler:
        """Build the learning-rate schedule, which moves after every optimiser step."""
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> Mapping[str, SealedCheckpoint]:
        """Build the files to write after an epoch.

        Args:
            index: index of the images.
            recipe: settings of the run, plain types.

        Returns:
            checkpoints by file name; none if the current weights are not to be kept.
        """
        return {"encoder.pth": encoder_checkpoint(self.network, type(self).__name__, self.hparams, index, recipe)}

    def create_target(self, tau: float, **networks: nn.Module) -> None:
        """Create the EMA target networks (BYOL, https://arxiv.org/abs/2006.07733, section 3.1).

        They start with the weights of the online networks, get no gradient and no drop path, and move after every
        optimiser step: target = tau * target + (1 - tau) * online, where tau rises to 1 along a cosine.

        Args:
            tau: momentum at the start.
            networks: target networks, whose weights are overwritten, by the attribute name of their online network;
                ``create_target(0.99, encoder=deepcopy(self.encoder))`` creates ``self.target["encoder"]``.

        Raises:
            ValueError: if ``tau`` does not lie between 0 and 1.
        """
        if not 0 <= tau <= 1:
            raise ValueError(f"tau must lie between 0 and 1, got {tau}")
        for name, network in networks.items():
            network.load_state_dict(self.get_submodule(name).state_dict())
        self.target, self._tau = nn.ModuleDict(networks), tau
        deactivate_requires_grad(self.target)
        _disable_drop_path(self.target)

    def cosine_at_step(self, start: float, end: float) -> float:
        """Return the value at the current optimiser step of a cosine from the first to the last step of the run."""
        total = max(total_steps(self.trainer), self.global_step)
        return cosine_schedule(self.global_step, total, start, end)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Return the sum of the weighted terms; log it, them and, of two samples or more, ``feature_spread``."""
        losses, features = self.losses(batch)
        logged = self._with_sum(losses)
        if len(features) > 1:  # one row has no spread
            logged["feature_spread"] = feature_spread(features)
        self._log(logged, len(features))
        return logged["loss"]

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Log the same as ``val_...``, without ``feature_spread``.

        Raises:
            RuntimeError: if the loss is not finite.
        """
        losses, features = self.losses(batch)
        losses = self._with_sum(losses)
        if not losses["loss"].isfinite():
            raise RuntimeError(
                f"diverged: the validation loss is {float(losses['loss'])} (epoch {self.current_epoch}"
                f"{images_of(batch)}). Lower the learning rate or train in float32; the files of the best epoch before "
                "are kept"
            )
        self._log({f"val_{name}": value for name, value in losses.items()}, len(features))

    def _with_sum(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weighted = [self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]
        return {**losses, "loss": torch.stack(weighted).sum()}

    def _log(self, values: Mapping[str, Tensor], batch_size: int) -> None:
        self.log_dict(dict(values), prog_bar=True, sync_dist=True, batch_size=batch_size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take an optimiser step, then move the target networks.

        Lightning calls this once per optimiser step, however many batches were accumulated.
        """
        super().optimizer_step(*args, **kwargs)
        if self.target is not None:
            tau = self.cosine_at_step(self._tau, 1.0)
            for name, network in self.target.items():
                update_momentum(self.get_submodule(name), network, tau)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        if self.hparams.get("lr", 1.0) <= 0:
            raise ValueError(f"lr must be above 0, got {self.hparams.lr}")
        optimizer = self.create_optimizer()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.create_schedule(optimizer), "interval": "step"},
        }

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def check_choice(argument: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    """Check an argument that selects parts of a method.

    Args:
        argument: name of the argument.
        chosen: its value.
        known: names to choose from.

    Raises:
        ValueError: if nothing is chosen, or an unknown name.
    """
    if not chosen or not set(chosen) <= set(known):
        raise ValueError(f"{argument} must be some of {', '.join(known)}, got {chosen}")


def _disable_drop_path(network: nn.Module) -> None:
    """Set the rate of drop path to 0: outputs of the target network are regression targets and must not be noisy."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
