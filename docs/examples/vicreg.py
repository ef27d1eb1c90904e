"""VICReg (Bardes et al., ICLR 2022, https://arxiv.org/abs/2105.04906), an example of a custom pretraining method.

docs/adding_a_method.md explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor

from nnunet_transformers.architectures import create_encoder
from nnunet_transformers.pretraining import EncoderPretraining


class VICReg(EncoderPretraining):
    """Pretrain an encoder to align two views of a crop; variance and covariance terms prevent representation collapse.

    Args:
        network: registered name.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of the network.
        hidden_dim: width of the projection head.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_epochs: epochs of linear warm-up before the cosine decay.
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

    def losses(self, batch: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss of a batch of ``MaskedViews``: two entries (views, reconstruction targets, rotations)."""
        pooled = [self.encoder.encode(view)[-1].flatten(2).mean(2) for view, _, _ in batch]
        return {"vicreg": self.criterion(*map(self.projection, pooled))}, pooled[0]

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.AdamW(self.trainable_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
