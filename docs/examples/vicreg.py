"""A pretraining method of one's own: VICReg (Bardes et al., arXiv:2105.04906).

docs/adding_a_method.md goes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from lightning import LightningModule
from torch import Tensor

from nnunet_transformers.architectures import create_encoder
from nnunet_transformers.pretraining.data import PreparedIndex
from nnunet_transformers.pretraining.encoder_checkpoint import encoder_checkpoint
from nnunet_transformers.runs.callbacks import feature_spread
from nnunet_transformers.runs.schedules import cosine_with_warmup
from nnunet_transformers.weights import EncoderCheckpoint


class VICReg(LightningModule):
    """Two views of a crop agree, while features keep their variance and stay uncorrelated.

    Args:
        network: registered name.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of the network.
        hidden_dim: of the projection head.
        lr, weight_decay: AdamW's.
        warmup_epochs: with a linearly rising rate, before the cosine decay.
    """

    def __init__(
        self,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] = (96, 96, 96),
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        hidden_dim: int = 1024,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_epochs: int = 10,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = create_encoder(network, input_channels, patch_size, **(network_overrides or {}))
        self.projection = VICRegProjectionHead(self.encoder.feature_channels[-1], hidden_dim, hidden_dim)
        self.criterion = VICRegLoss(gather_distributed=True)

    def training_step(self, batch: Sequence[tuple[Tensor, Tensor, Tensor]], batch_index: int) -> Tensor:
        """Loss of a batch of ``MaskedViews``: the two views alone, which are turned and have boxes of noise."""
        pooled = [self.encoder.encode(view)[-1].flatten(2).mean(2) for view, _, _ in batch]
        loss = self.criterion(*map(self.projection, pooled))
        logged = {"loss": loss, "feature_spread": feature_spread(pooled[0])}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(pooled[0]))
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, EncoderCheckpoint]:
        """The encoder, by file name; ``index`` is the prepared data's, ``recipe`` the settings of the run."""
        checkpoint = encoder_checkpoint(self.encoder, type(self).__name__, self.hparams, index, recipe)
        return {"encoder.pth": checkpoint}
