"""QT-UNet's self-supervision: reconstruction, rotation prediction, and BYOL with an EMA target network.

Håversen, "QT-UNet", master's thesis, NTNU, section 3.3.12 and tables 3.3 to 3.5. Three things differ because trainings
of the thesis failed: features are pooled before the heads, which makes the heads smaller than the encoder; the
reconstruction target is rotated with the view; the target network moves once per optimiser step instead of once per
accumulated batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor

from ...architectures import create_encoder
from ...runs.distributed import gather
from ..data.transforms import rotations_of
from ..encoder_pretraining import EncoderPretraining, check_choice
from ..heads import reconstruction_head, rotation_head

HEADS = ("reconstruction", "rotation", "byol")


class QTSSL(EncoderPretraining):
    """Pretrain the encoder of any network by reconstruction, rotation prediction and BYOL.

    Args:
        network: registered name.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of the network, such as ``norm_placement``.
        heads: which of "reconstruction", "rotation" and "byol" to train.
        byol_weight: weight of BYOL's loss, the mean of -cos over the two directions, beside the means of the others;
            the release sums -2 cos beside sums over the views, which is a weight of 2.
        lr: peak learning rate of Adam.
        weight_decay: L2 penalty of Adam.
        warmup_epochs: epochs of linear warm-up before the cosine decay.
        tau: momentum of the target network at the start; rises to 1 along a cosine.

    Raises:
        ValueError: if there is no head, or an unknown one.
    """

    def __init__(
        self,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] = (96, 96, 96),
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        heads: Sequence[str] = HEADS,
        byol_weight: float = 2.0,
        lr: float = 0.4e-4,
        weight_decay: float = 1.5e-6,
        warmup_epochs: int = 10,
        tau: float = 0.996,
    ) -> None:
        super().__init__()
        check_choice("heads", heads, HEADS)
        self.save_hyperparameters()
        self.heads = tuple(heads)
        self.encoder = create_encoder(network, input_channels, patch_size, **(network_overrides or {}))
        dim = self.encoder.feature_channels[-1]
        if "reconstruction" in heads:
            self.reconstruction = reconstruction_head(dim, input_channels, self.encoder.feature_strides[-1])
        if "rotation" in heads:
            self.rotation = rotation_head(dim, len(rotations_of(patch_size)))
        if "byol" in heads:
            self.projection, self.prediction = BYOLProjectionHead(dim), BYOLPredictionHead()
            self.create_target(tau, encoder=deepcopy(self.encoder), projection=deepcopy(self.projection))
            self.similarity = NegativeCosineSimilarity()

    def losses(self, batch: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch of ``MaskedViews``, each the mean over the two views, with its weight.

        Args:
            batch: two views; each is (images, reconstruction targets, indices of the rotations): images and targets
                (batch, channels, *patch_size), indices (batch,).

        Raises:
            ValueError: if there is only one image in the batches of all processes.
        """
        views, targets, turns = zip(*batch, strict=True)
        features = [self.encoder.encode(view)[-1] for view in views]
        # the heads have batch norm: they see the batches of all processes
        pooled = [gather(f.flatten(2).mean(2)) for f in features]
        if self.training and len(pooled[0]) < 2:
            raise ValueError("QT-UNet's SSL normalises over the batch: batch_size must be at least 2")
        losses: dict[str, Tensor] = {}
        if "reconstruction" in self.heads:
            errors = [F.l1_loss(self.reconstruction(f), t) for f, t in zip(features, targets, strict=True)]
            losses["reconstruction"] = torch.stack(errors).mean()
        if "rotation" in self.heads:
            pairs = zip(pooled, map(gather, turns), strict=True)
            losses["rotation"] = torch.stack([F.cross_entropy(self.rotation(p), turn) for p, turn in pairs]).mean()
        if "byol" in self.heads:
            losses["byol"] = self._byol(views, pooled)
        return losses, pooled[0]

    def _byol(self, views: Sequence[Tensor], pooled: Sequence[Tensor]) -> Tensor:
        """BYOL's loss (https://arxiv.org/abs/2006.07733, eq. 2), symmetrised: each view predicts the other's target.

        Weighted by ``byol_weight``.
        """
        with torch.no_grad():
            targets = [gather(self.target["encoder"].encode(view)[-1].flatten(2).mean(2)) for view in views]
            first, second = map(self.target["projection"], targets)
        predicted = [self.prediction(self.projection(p)) for p in pooled]
        both = self.similarity(predicted[0], second) + self.similarity(predicted[1], first)
        return self.hparams.byol_weight * both / 2

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.Adam(self.trainable_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
