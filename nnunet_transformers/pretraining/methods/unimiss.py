"""UniMiSS: self-distillation of one network for images and volumes, across views, slices and volumes.

Xie et al., "UniMiSS: Universal Medical Self-Supervised Learning via Breaking Dimensionality Barrier", ECCV 2022, and
its appendix; what they do not state follows the authors' release. The schedules follow the optimiser steps, because
the release indexes them wrongly. The paper's teacher is the EMA target network, its student the online network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.models.modules.heads import DINOProjectionHead
from timm.optim import param_groups_weight_decay
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ...architectures import create_pair
from ...runs.distributed import samples_per_step
from ...runs.schedules import cosine_with_warmup
from ...weights import EncoderCheckpoint
from ..data.index import PreparedIndex
from ..encoder_checkpoint import pair_checkpoints
from ..encoder_pretraining import EncoderPretraining
from ..encoders.slices import cross_dimension_logits
from ..losses import CrossDimensionLoss


class UniMiSS(EncoderPretraining):
    """Pretrain a network on images and volumes: MiT with its class token and decoder, other networks' encoders.

    Args:
        network: registered name.
        patch_size_2d, patch_size_3d: voxels per axis of the views.
        input_channels_2d: channels of the 2D form; a grey image is repeated.
        network_overrides: arguments of the network's 3D form, such as a plan's; the 2D form omits the first axis of
            those with an entry per axis.
        output_dim: output channels of the projection head.
        batch_norm: use batch norm in the head, unlike the paper; it prevents representation collapse with small
            batches.
        lr: peak learning rate of AdamW for a batch of 256; that of a run is proportional to its batch.
        warmup_epochs: epochs of linear warm-up before the cosine decay to ``min_lr``.
        min_lr: learning rate at the end.
        weight_decay: weight decay at the start and at the end, along a cosine; none on norms and biases.
        tau: momentum of the target network at the start; rises to 1 along a cosine.
        student_temperature, teacher_temperature, center_momentum: arguments of DINO's loss.
        clip_grad_norm: maximum gradient norm of each parameter.

    Raises:
        ValueError: as ``create_pair``.
    """

    strategy = "ddp_find_unused_parameters_true"  # a batch of images trains the 2D form only

    def __init__(
        self,
        network: str = "mit_7",
        patch_size_2d: Sequence[int] = (224, 224),
        patch_size_3d: Sequence[int] = (16, 96, 96),
        input_channels_2d: int = 3,
        network_overrides: dict[str, Any] | None = None,
        output_dim: int = 65536,
        batch_norm: bool = False,
        lr: float = 8e-4,
        warmup_epochs: int = 10,
        min_lr: float = 1e-6,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        tau: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        center_momentum: float = 0.9,
        clip_grad_norm: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = (patch_size_2d, patch_size_3d, input_channels_2d, 1)
        pairs = [create_pair(network, *sizes, network_overrides) for _ in range(2)]
        heads = [
            DINOProjectionHead(pair.dim, output_dim=output_dim, freeze_last_layer=1, batch_norm=batch_norm)
            for pair in pairs
        ]
        self.encoder, self.head = pairs[0], heads[0]
        self.create_target(tau, encoder=pairs[1], head=heads[1])
        self.loss = CrossDimensionLoss(
            output_dim,
            warmup_teacher_temp=teacher_temperature,
            teacher_temp=teacher_temperature,
            student_temp=student_temperature,
            center_momentum=center_momentum,
        )

    def losses(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss of a batch of ``TwoViews``.

        Args:
            batch: two views of images (batch, channels, height, width) or of volumes (batch, 1, depth, height, width).
        """
        with torch.no_grad():
            target = cross_dimension_logits(self.target["encoder"], self.target["head"], batch)
        online = cross_dimension_logits(self.encoder, self.head, batch)
        return {f"loss_{batch[0].dim() - 2}d": self.loss(target, online)}, online[0][0]

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip each gradient by itself and freeze the head's last layer in the first epoch, as DINO's release does."""
        for parameter in self.trainable_parameters():
            if parameter.grad is not None:
                torch.nn.utils.clip_grad_norm_(parameter, self.hparams.clip_grad_norm)
        self.head.cancel_last_layer_gradients(self.current_epoch)

    def optimizer_step(self, epoch: int, batch_index: int, optimizer: Any, closure: Any = None) -> None:
        weight_decay = self.cosine_at_step(*self.hparams.weight_decay)
        for group in optimizer.param_groups:
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        super().optimizer_step(epoch, batch_index, optimizer, closure)
        self.loss.move_center()

    def create_optimizer(self) -> torch.optim.Optimizer:
        batch_size = samples_per_step(self.trainer, self.datamodule.batch_size)
        groups = param_groups_weight_decay(self, max(self.hparams.weight_decay))
        for group in groups:
            group["decays"] = group["weight_decay"] > 0
        return torch.optim.AdamW(groups, lr=self.hparams.lr * batch_size / 256)

    def create_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        end_value = self.hparams.min_lr / optimizer.param_groups[0]["lr"]
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs, end_value)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, EncoderCheckpoint]:
        """Build ``encoder_2d.pth`` and ``encoder_3d.pth``, of the online network's two forms."""
        return pair_checkpoints(self.encoder, type(self).__name__, self.hparams, index, recipe)
