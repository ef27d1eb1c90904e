"""What the training of a classifier and of a detector have in common: an encoder below, AdamW, and the best epoch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ..pretraining.data.index import PreparedIndex
from ..runs.schedules import CosineWarmup, total_steps
from ..weights.sealed import SealedCheckpoint
from .classifier import BackboneDescription, has_own_classifier, load_pretrained, pretrained_backbone


class EncoderTraining(LightningModule):
    """Base of Lightning modules that train on a pretrained encoder and write what validates best.

    A subclass saves ``lr``, ``weight_decay``, ``warmup_steps`` and ``final_lr_share`` as hyper-parameters, and sets
    ``is_best`` after each validation.

    Attributes:
        description: description of the backbone.
        source: description of the initial weights.
        normalization: normalisation of the encoder's training images; empty for random weights.
        is_best: whether the last validation was the best so far.
        is_written_when_validated: that ``CheckpointWriter`` writes after validations, not after epochs.
        scores: its scores.
    """

    is_written_when_validated = True

    description: BackboneDescription
    source = "random weights"
    normalization: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.is_best = False
        self.scores: dict[str, float] = {}

    def build_backbone(
        self,
        encoder: str | None,
        network: str,
        patch_size: Sequence[int] | None,
        input_channels: int,
        overrides: Mapping[str, Any] | None,
    ) -> nn.Module:
        """Build the backbone with the weights of a checkpoint, or with random weights.

        Args:
            encoder: checkpoint to start from; None for random weights.
            network, input_channels, overrides: of random weights.
            patch_size: voxels per axis; by default the checkpoint's.

        Raises:
            ValueError: if there is neither a checkpoint nor a patch size, or the network cannot be built.
            FileNotFoundError: if there is no such checkpoint.
        """
        if encoder is not None:
            checkpoint = load_pretrained(Path(encoder))
            backbone, self.description, report = pretrained_backbone(checkpoint, patch_size)
            self.source = f"{checkpoint.method} of {checkpoint.name}, {checkpoint.num_cases} images"
            self.normalization = checkpoint.normalization
            rank_zero_info(report)
            return backbone
        if patch_size is None:
            raise ValueError("there is no encoder to take the patch from: set --model.init_args.patch_size")
        self.description = BackboneDescription(
            network, tuple(patch_size), input_channels, dict(overrides or {}), has_own_classifier(network)
        )
        return self.description.build()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = list(self.trainer.datamodule.classes)  # type: ignore[attr-defined]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a resumed run has the classes of before, in their order: outputs are known by their number.

        Raises:
            ValueError: if it has others.
        """
        found: list[str] = list(self.trainer.datamodule.classes)  # type: ignore[attr-defined]
        before = checkpoint.get("classes", found)  # states of earlier versions do not name them
        if found != before:
            raise ValueError(
                f"the run was started with the classes {', '.join(before)}, the table has {', '.join(found)} now: "
                "resume it with the classes of before, or start a run with another --output"
            )

    def check_finite(self, loss: Tensor) -> None:
        """Raise RuntimeError if a training loss is not finite."""
        if not loss.isfinite():
            raise RuntimeError(
                f"diverged: the loss is not finite (epoch {self.current_epoch}, step {self.global_step}). Lower the "
                f"learning rate or train in float32; the state of the epoch before is in "
                f"{self.trainer.default_root_dir}"
            )

    def on_train_start(self) -> None:
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        needed = steps * (self.trainer.check_val_every_n_epoch or 1)
        if total_steps(self.trainer) < needed:
            raise ValueError(
                f"the run ends after {total_steps(self.trainer)} steps, before the first validation after {needed}: "
                "make it longer (--trainer.max_steps, --trainer.max_epochs), or lower --trainer.check_val_every_n_epoch"
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings: Any = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        total = total_steps(self.trainer)
        warmup = min(settings.warmup_steps, total)
        scheduler = CosineWarmup(optimizer, warmup, total, end_value=settings.final_lr_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @abstractmethod
    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> Mapping[str, SealedCheckpoint]:
        """Return what was trained by file name, if its validation is the best so far.

        Args:
            index: index of the prepared images.
            recipe: settings of the run, plain types.
        """
