"""MGCA: image-report alignment at three granularities: instance-wise, token-wise and by disease (prototypes).

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning", NeurIPS
2022 (https://arxiv.org/abs/2210.06044), and its supplement. Unlike in the authors' release, the text encoder has
position embeddings, padding tokens are no words, and the losses of a batch include the batches of all devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...runs.distributed import gather
from ...runs.schedules import CosineWarmup, total_steps
from ...weights.sealed import SealedCheckpoint
from ..alignment import AlignmentCheckpoint
from ..best_epoch import BestEpochPretraining
from ..data.index import PreparedIndex
from ..encoders.image import create_image_encoder
from ..encoders.text import TextEncoder
from ..heads import AlignmentHead, apply_to_tokens
from ..losses import cpa_loss, cta_loss, ita_loss, token_weights

# of the heads
EMBEDDING = 128


class MGCA(BestEpochPretraining):
    """Pretrain an image encoder on images and their radiology reports.

    Args:
        text_encoder: local folder or hub name of a BERT and its tokenizer.
        network: registered 2D network, or a timm model.
        patch_size: height and width.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        pretrained: start from timm's weights, downloaded or from the given file.
        num_text_layers: number of BERT layers to keep, from the first on.
        summed_text_layers: number of last layers whose features are summed (supplement A.2: the last four).
        ita_weight, cta_weight, cpa_weight: weights of the instance-wise, token-wise and prototype loss; 0 omits a loss.
        cta_heads: heads of learned attention in the token-wise loss, 1, 2 or 4 in the supplement's table 5; 0: the
            tokens attend as they are, as in the release's default.
        num_prototypes: number of prototypes, which stand for diseases.
        frozen_epochs: number of first epochs in which the prototypes are frozen.
        lr: peak learning rate of AdamW.
        min_lr: learning rate at the end.
        weight_decay: of AdamW.
        warmup_share: fraction of the steps that is linear warm-up before the cosine decay.
        reference_compat: reproduce the authors' release, see ``TextEncoder`` and ``cta_loss``.

    Raises:
        ValueError: if a weight is negative or all are 0, or ``cta_heads`` does not divide 128; as
            ``create_image_encoder`` and ``TextEncoder``.
        OSError, ModuleNotFoundError: as ``TextEncoder``.
    """

    def __init__(
        self,
        text_encoder: str,
        network: str = "vit_base_patch16_224",
        patch_size: Sequence[int] = (224, 224),
        input_channels: int = 3,
        network_overrides: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        num_text_layers: int = 6,
        summed_text_layers: int = 1,
        ita_weight: float = 1.0,
        cta_weight: float = 1.0,
        cpa_weight: float = 1.0,
        cta_heads: int = 0,
        num_prototypes: int = 500,
        frozen_epochs: int = 1,
        lr: float = 2e-5,
        min_lr: float = 1e-8,
        weight_decay: float = 0.05,
        warmup_share: float = 0.4,
        reference_compat: bool = False,
    ) -> None:
        super().__init__()
        self.loss_weights = {"ita": ita_weight, "cta": cta_weight, "cpa": cpa_weight}
        if min(self.loss_weights.values()) < 0 or not any(self.loss_weights.values()):
            raise ValueError(f"weights of the losses must not be negative, and one at least not 0: {self.loss_weights}")
        if cta_heads < 0 or (cta_heads and EMBEDDING % cta_heads):
            raise ValueError(f"cta_heads must be 0 or divide the {EMBEDDING} channels of the heads, got {cta_heads}")
        self.save_hyperparameters()
        use_instances, use_tokens = bool(ita_weight or cpa_weight), bool(cta_weight)
        self.image_encoder = create_image_encoder(
            network, input_channels, patch_size, network_overrides, pretrained, use_instances, use_tokens
        )
        self.text_encoder = TextEncoder(text_encoder, num_text_layers, reference_compat, summed_text_layers)
        if use_instances:
            self.image_head = AlignmentHead(self.image_encoder.dim)
            self.report_head = AlignmentHead(self.text_encoder.dim)
        if use_tokens:
            self.patch_head = AlignmentHead(self.image_encoder.local_dim)
            self.word_head = AlignmentHead(self.text_encoder.dim)
        # of words to patches, and of patches to words
        attending = 2 if use_tokens and cta_heads else 0
        self.cta_attention = nn.ModuleList(
            nn.MultiheadAttention(EMBEDDING, cta_heads, batch_first=True) for _ in range(attending)
        )
        if cpa_weight:
            self.prototypes = nn.Linear(EMBEDDING, num_prototypes, bias=False)

    @property
    def network(self) -> Any:
        return self.image_encoder.network

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch of ``ReportPairs``, without those of weight 0.

        With several processes the instance-wise heads and losses see the batches of all of them.
        """
        image = self.image_encoder(batch["image"])
        report = self.text_encoder(batch["input_ids"], batch["attention_mask"], batch["word_ids"])
        features = gather(image.instance)
        losses: dict[str, Tensor] = {}
        ita, cta, cpa = self.loss_weights.values()
        if ita or cpa:
            if len(features) < 2 and self.training:
                raise ValueError("MGCA contrasts the images of a batch: batch_size must be at least 2")
            instances = self.image_head(features), self.report_head(gather(report.report))
        if cta:
            patches = apply_to_tokens(self.patch_head, image.patches)
            words = apply_to_tokens(self.word_head, report.words, report.padding)
        # similarities in single precision, see AlignmentHead
        with torch.autocast(self.device.type, enabled=False):
            if ita:
                losses["ita"] = ita_loss(*instances)
            if cta:
                patch_weights = None if image.attention is None else token_weights(image.attention)
                weights = patch_weights, token_weights(report.attention), report.padding
                losses["cta"] = cta_loss(
                    patches,
                    words,
                    *weights,
                    reference_compat=self.hparams.reference_compat,
                    attention=cast(Sequence[nn.MultiheadAttention], self.cta_attention),
                )
            if cpa:
                with torch.no_grad():
                    self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
                losses["cpa"] = cpa_loss(*instances, self.prototypes.weight)
        return losses, features

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # requires_grad would have to be constant for DDP
        if self.loss_weights["cpa"] and self.current_epoch < self.hparams.frozen_epochs:
            self.prototypes.weight.grad = None

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.AdamW(self.trainable_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def create_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        settings, total = self.hparams, total_steps(self.trainer)
        warmup, end_value = round(total * settings.warmup_share), settings.min_lr / settings.lr
        return CosineWarmup(optimizer, warmup, total, end_value=end_value)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> Mapping[str, SealedCheckpoint]:
        """Build ``encoder.pth`` and ``alignment.pth``, all weights, if the validation loss is the lowest so far."""
        files = super().checkpoints(index, recipe)
        if not files:
            return files
        return {**files, "alignment.pth": AlignmentCheckpoint.from_method(self, self.datamodule.max_length)}
