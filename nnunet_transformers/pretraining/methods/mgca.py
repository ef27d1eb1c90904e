"""MGCA: image-report alignment at three granularities: instance-wise, token-wise and by disease (prototypes).

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning", NeurIPS
2022 (https://arxiv.org/abs/2210.06044), and its supplement. Unlike in the authors' release, the text encoder has
position embeddings, padding tokens are no words, and the losses of a batch include the batches of all devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...architectures import list_networks
from ...runs.distributed import gather
from ...runs.schedules import total_steps
from ...weights import EncoderCheckpoint, TimmCheckpoint, encoder_weights
from ...weights.sealed import SealedCheckpoint
from ..alignment import AlignmentCheckpoint
from ..data.index import PreparedIndex
from ..encoder_checkpoint import data_settings
from ..encoder_pretraining import EncoderPretraining
from ..encoders.image import ImageEncoder, create_image_encoder
from ..encoders.text import TextEncoder
from ..heads import alignment_head, apply_to_tokens
from ..losses import cpa_loss, cta_loss, ita_loss, token_weights


class MGCA(EncoderPretraining):
    """Pretrain an image encoder on images and their reports.

    Args:
        text_encoder: local folder or hub name of a BERT and its tokenizer.
        network: registered 2D network, or a timm model.
        patch_size: height and width.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        pretrained: start from timm's weights, downloaded, or a file with them.
        num_text_layers: number of BERT layers to keep, from the first one on.
        ita_weight, cta_weight, cpa_weight: weights of the instance-wise, token-wise and prototype loss; 0 omits a loss.
        num_prototypes: number of prototypes, which stand for diseases.
        frozen_epochs: epochs at the start in which the prototypes are frozen.
        lr: peak learning rate of AdamW.
        min_lr: learning rate at the end.
        weight_decay: of AdamW.
        warmup_share: fraction of all steps that is linear warm-up before the cosine decay.
        reference_compat: behave as the authors' release, see ``TextEncoder`` and ``cta_loss``.

    Raises:
        ValueError: if a weight is negative or all are 0, or as ``create_image_encoder`` and ``TextEncoder``.
    """

    image_encoder: ImageEncoder
    prototypes: nn.Linear
    lowest_val_loss: Tensor

    def __init__(
        self,
        text_encoder: str,
        network: str = "vit_base_patch16_224",
        patch_size: Sequence[int] = (224, 224),
        input_channels: int = 3,
        network_overrides: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        num_text_layers: int = 6,
        ita_weight: float = 1.0,
        cta_weight: float = 1.0,
        cpa_weight: float = 1.0,
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
        self.save_hyperparameters()
        instance, tokens = bool(ita_weight or cpa_weight), bool(cta_weight)
        arguments = (network, input_channels, patch_size, network_overrides, pretrained, instance, tokens)
        self.image_encoder = create_image_encoder(*arguments)
        self.text_encoder = TextEncoder(text_encoder, num_text_layers, reference_compat)
        if instance:
            self.image_head = alignment_head(self.image_encoder.dim)
            self.report_head = alignment_head(self.text_encoder.dim)
        if tokens:
            self.patch_head = alignment_head(self.image_encoder.local_dim)
            self.word_head = alignment_head(self.text_encoder.dim)
        if cpa_weight:
            self.prototypes = nn.Linear(128, num_prototypes, bias=False)
        self.register_buffer("lowest_val_loss", torch.tensor(torch.inf))
        self.is_best = True

    @classmethod
    def from_checkpoint(cls, checkpoint: AlignmentCheckpoint, text_encoder: str | None = None) -> MGCA:
        """Rebuild a trained method, in evaluation mode.

        Args:
            checkpoint: weights and settings.
            text_encoder: local folder or hub name, if it has moved since training.

        Raises:
            OSError: if there is no such text encoder.
        """
        changes = {"pretrained": False} | ({"text_encoder": text_encoder} if text_encoder else {})
        method = cls(**{**checkpoint.settings, **changes})
        method.load_state_dict(checkpoint.weights)
        return method.eval()

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch of ``ReportPairs``, without those of weight 0.

        With several processes the instance-wise heads and losses see the batches of all of them.
        """
        image = self.image_encoder(batch["image"])
        report = self.text_encoder(batch["input_ids"], batch["attention_mask"], batch["word_ids"])
        features, losses = gather(image.instance), {}
        ita, cta, cpa = self.loss_weights.values()
        if ita or cpa:
            if len(features) < 2 and self.training:
                raise ValueError("MGCA contrasts the images of a batch: batch_size must be at least 2")
            instances = _upcast(self.image_head(features)), _upcast(self.report_head(gather(report.report)))
        if cta:
            patches = _upcast(apply_to_tokens(self.patch_head, image.patches))
            words = _upcast(apply_to_tokens(self.word_head, report.words, report.padding))
        # the exponential of similarities over a temperature overflows in half precision
        with torch.autocast(self.device.type, enabled=False):
            if ita:
                losses["ita"] = ita_loss(*instances)
            if cta:
                patch_weights = None if image.attention is None else token_weights(_upcast(image.attention))
                weights = patch_weights, token_weights(_upcast(report.attention)), report.padding
                losses["cta"] = cta_loss(patches, words, *weights, reference_compat=self.hparams.reference_compat)
            if cpa:
                with torch.no_grad():
                    self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
                losses["cpa"] = cpa_loss(*instances, self.prototypes.weight)
        return losses, features

    def on_train_epoch_start(self) -> None:
        # an epoch that is cut short is not validated
        self.is_best = not self.trainer.enable_validation or bool(self.lowest_val_loss.isinf())

    def on_validation_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        loss, lowest = float(self.trainer.callback_metrics["val_loss"]), float(self.lowest_val_loss)
        self.is_best = loss < lowest
        self.lowest_val_loss.fill_(min(loss, lowest))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # not by requires_grad, of which DDP must know from the start
        if self.loss_weights["cpa"] and self.current_epoch < self.hparams.frozen_epochs:
            self.prototypes.weight.grad = None

    def create_optimizer(self) -> torch.optim.Optimizer:
        settings = self.hparams
        return torch.optim.AdamW(self.trainable_parameters(), lr=settings.lr, weight_decay=settings.weight_decay)

    def create_schedule(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        settings, total = self.hparams, total_steps(self.trainer)
        warmup, end_value = round(total * settings.warmup_share), settings.min_lr / settings.lr
        return CosineWarmupScheduler(optimizer, warmup, total, end_value=end_value)

    def checkpoints(self, index: PreparedIndex, recipe: dict[str, Any]) -> Mapping[str, SealedCheckpoint]:
        """Build ``encoder.pth`` and ``alignment.pth``, all weights, if the validation loss is the lowest so far."""
        if not self.is_best:
            return {}
        settings, network = self.hparams, self.image_encoder.network
        known = {
            "name": settings.network,
            "patch_size": tuple(settings.patch_size),
            "input_channels": settings.input_channels,
            "method": type(self).__name__,
            "recipe": recipe,
            **data_settings(index),
        }
        encoder: SealedCheckpoint
        if settings.network in list_networks():
            encoder = EncoderCheckpoint(encoder_weights(network), overrides=settings.network_overrides or {}, **known)
        else:
            encoder = TimmCheckpoint(_weights(network), **known)
        # LightningCLI adds entries of its own to the hyper-parameters
        own = {name: value for name, value in settings.items() if not name.startswith("_")}
        return {
            "encoder.pth": encoder,
            "alignment.pth": AlignmentCheckpoint(_weights(self), own, self.trainer.datamodule.max_length),
        }


def _upcast(x: Tensor) -> Tensor:
    """Convert half precision to single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
