"""QT-UNet's self-supervision: reconstruct, tell the rotation, agree with a slow copy of oneself.

Håversen, "QT-UNet", master's thesis, NTNU, section 3.3.12 and tables 3.3 to 3.5. Where a training of the thesis went
wrong this has the remedies: features are pooled before the heads, which then are smaller than the encoder; the
reconstruction's target is rotated as the view is; the slow copy moves with each step of the optimiser and not with each
batch that is accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead, ProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from lightning import LightningModule
from torch import Tensor, nn

from ...architectures import create_encoder
from ...runs.callbacks import feature_spread
from ...runs.distributed import gather
from ...runs.schedules import cosine_with_warmup, total_steps
from ...weights import EncoderCheckpoint
from ..data.index import PreparedIndex
from ..data.transforms import rotations_of
from ..encoder_checkpoint import encoder_checkpoint
from ..encoders.encoder import rest_drop_path

HEADS = ("reconstruction", "rotation", "byol")


class QTSSL(LightningModule):
    """Pretrain the encoder of any network.

    Args:
        network: registered name.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of the network, such as ``norm_placement``.
        heads: which of "reconstruction", "rotation" and "byol" to train; each has weight 1.
        lr: Adam's learning rate.
        weight_decay: Adam's.
        warmup_epochs: with a linearly rising rate, before the cosine decay.
        tau: momentum of the slow copy at the start; rises to 1 along a cosine.

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
        lr: float = 0.4e-4,
        weight_decay: float = 1.5e-6,
        warmup_epochs: int = 10,
        tau: float = 0.996,
    ) -> None:
        super().__init__()
        unknown = [head for head in heads if head not in HEADS]
        if unknown or not heads:
            raise ValueError(f"heads must be some of {', '.join(HEADS)}, got {heads}")
        self.save_hyperparameters()
        self.encoder = create_encoder(network, input_channels, patch_size, **(network_overrides or {}))
        dim, stride = self.encoder.feature_channels[-1], self.encoder.feature_strides[-1]
        if "reconstruction" in heads:
            transposed = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(patch_size)]
            self.reconstruction = transposed(dim, input_channels, stride, stride)
        if "rotation" in heads:
            blocks = [(dim, dim, nn.BatchNorm1d(dim), nn.ReLU()), (dim, len(rotations_of(patch_size)), None, None)]
            self.rotation = ProjectionHead(blocks)
        if "byol" in heads:
            self.projection, self.prediction = BYOLProjectionHead(dim), BYOLPredictionHead()
            self.target = nn.ModuleDict({"encoder": deepcopy(self.encoder), "projection": deepcopy(self.projection)})
            deactivate_requires_grad(self.target)
            rest_drop_path(self.target)
            self.similarity = NegativeCosineSimilarity()

    def training_step(self, batch: Sequence[tuple[Tensor, Tensor, Tensor]], batch_index: int) -> Tensor:
        """Loss of a batch of ``MaskedViews``; with several processes the heads see the batches of all of them."""
        views, targets, turns = zip(*batch, strict=True)
        features = [self.encoder.encode(view)[-1] for view in views]
        pooled = [gather(f.flatten(2).mean(2)) for f in features]
        if len(pooled[0]) < 2:
            raise ValueError("QT-UNet's SSL normalises over the batch: batch_size must be at least 2")
        losses = {}
        if "reconstruction" in self.hparams.heads:
            pairs = zip(features, targets, strict=True)
            losses["reconstruction"] = sum(F.l1_loss(self.reconstruction(f), t) for f, t in pairs) / 2
        if "rotation" in self.hparams.heads:
            pairs = zip(pooled, map(gather, turns), strict=True)
            losses["rotation"] = sum(F.cross_entropy(self.rotation(p), turn) for p, turn in pairs) / 2
        if "byol" in self.hparams.heads:
            losses["byol"] = self._byol(views, pooled)
        loss = sum(losses.values())
        logged = {**losses, "loss": loss, "feature_spread": feature_spread(pooled[0])}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(views[0]))
        return loss

    def _byol(self, views: tuple[Tensor, ...], pooled: list[Tensor]) -> Tensor:
        """BYOL (https://arxiv.org/abs/2006.07733, eq. 2), both ways round."""
        with torch.no_grad():
            slow = [gather(self.target["encoder"].encode(view)[-1].flatten(2).mean(2)) for view in views]
            slow = [self.target["projection"](f) for f in slow]
        predicted = [self.prediction(self.projection(f)) for f in pooled]
        return (self.similarity(predicted[0], slow[1]) + self.similarity(predicted[1], slow[0])) / 2

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning calls this once an optimiser step, however many batches were accumulated."""
        super().optimizer_step(*args, **kwargs)
        if "byol" in self.hparams.heads:
            total = max(total_steps(self.trainer), self.global_step)
            tau = cosine_schedule(self.global_step, total, self.hparams.tau, 1.0)
            update_momentum(self.encoder, self.target["encoder"], tau)
            update_momentum(self.projection, self.target["projection"], tau)

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> dict[str, EncoderCheckpoint]:
        """The encoder.

        Args:
            index: of the prepared data.
            recipe: settings of the run, plain types.

        Returns:
            by file name.
        """
        checkpoint = encoder_checkpoint(self.encoder, type(self).__name__, self.hparams, index, recipe)
        return {"encoder.pth": checkpoint}
