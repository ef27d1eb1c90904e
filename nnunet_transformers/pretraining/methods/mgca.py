"""MGCA: an image encoder that learns from the reports of its images, as wholes, in parts and by disease.

Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual Representation Learning", NeurIPS
2022 (https://arxiv.org/abs/2210.06044), and its supplement. Against the authors' release the text encoder knows the
order of words, padding is no word, and the losses of a batch see that of all devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightly.utils.scheduler import CosineWarmupScheduler
from lightning import LightningModule
from torch import Tensor, nn

from ...architectures import list_networks
from ...runs.callbacks import feature_spread
from ...runs.distributed import gather
from ...runs.schedules import total_steps
from ...weights import EncoderCheckpoint, TimmCheckpoint, encoder_weights
from ..alignment import AlignmentCheckpoint
from ..data.index import PreparedIndex
from ..encoders.image import create_image_encoder
from ..encoders.text import TextEncoder
from ..losses import cpa_loss, cta_loss, ita_loss, token_weights


def projection_head(dim: int, hidden_dim: int = 2048, output_dim: int = 128) -> nn.Sequential:
    """The supplement's head, for the rows of (rows, dim); on tokens it is its convolution of kernel size 1."""
    return nn.Sequential(
        nn.Linear(dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(),
        nn.Linear(hidden_dim, output_dim),
        nn.BatchNorm1d(output_dim, affine=False),
    )


def on_rows(head: nn.Module, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """A head on the tokens that are no padding, whose statistics padding would shift.

    Args:
        head: of (rows, dim).
        tokens: (batch, tokens, dim).
        padding: (batch, tokens).

    Returns:
        (batch, tokens, output_dim), 0 for padding.
    """
    if padding is None:
        return head(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    rows = head(tokens[~padding])
    return rows.new_zeros(*padding.shape, rows.shape[1]).masked_scatter(~padding[..., None], rows)


class MGCA(LightningModule):
    """Pretrain an image encoder on images and their reports.

    Args:
        text_encoder: local folder or hub name of a BERT and its tokenizer.
        network: registered 2D network, or one of timm's.
        patch_size: height and width.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        pretrained: start from timm's weights, downloaded, or a file with them.
        num_text_layers: first layers of the BERT.
        ita_weight, cta_weight, cpa_weight: of the losses of wholes, of parts and of diseases; 0 leaves one out.
        num_prototypes: diseases, roughly.
        frozen_epochs: in which the prototypes do not move.
        lr: AdamW's learning rate.
        min_lr: rate at the end.
        weight_decay: AdamW's.
        warmup_share: of all steps, with a linearly rising rate, before the cosine decay.
        reference_compat: as the authors' release, see ``TextEncoder`` and ``cta_loss``.

    Raises:
        ValueError: if a weight is negative or all are 0, or as ``create_image_encoder`` and ``TextEncoder``.
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
        whole, parts = bool(ita_weight or cpa_weight), bool(cta_weight)
        arguments = (network, input_channels, patch_size, network_overrides, pretrained, whole, parts)
        self.image_encoder = create_image_encoder(*arguments)
        self.text_encoder = TextEncoder(text_encoder, num_text_layers, reference_compat)
        if whole:
            self.image_head = projection_head(self.image_encoder.dim)
            self.report_head = projection_head(self.text_encoder.dim)
        if parts:
            self.patch_head = projection_head(self.image_encoder.local_dim)
            self.word_head = projection_head(self.text_encoder.dim)
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
        """The losses that are not left out, by name, and the features of whole images.

        Args:
            batch: of ``ReportPairs``. With several processes the heads of wholes see the batches of all of them.
        """
        image = self.image_encoder(batch["image"])
        report = self.text_encoder(batch["input_ids"], batch["attention_mask"], batch["word_ids"])
        features = gather(image.whole)
        ita, cta, cpa = self.loss_weights.values()
        if ita or cpa:
            if len(features) < 2 and self.training:
                raise ValueError("MGCA tells the images of a batch apart: batch_size must be at least 2")
            wholes = self.image_head(features).float(), self.report_head(gather(report.report)).float()
        if cta:
            patches = on_rows(self.patch_head, image.patches).float()
            words = on_rows(self.word_head, report.words, report.padding).float()
        losses = {}
        # in half precision what is divided by a temperature and exponentiated overflows
        with torch.autocast(self.device.type, enabled=False):
            if ita:
                losses["ita"] = ita_loss(*wholes)
            if cta:
                patch_weights = None if image.attention is None else token_weights(image.attention.float())
                weights = patch_weights, token_weights(report.attention.float()), report.padding
                compat = self.hparams.reference_compat
                losses["cta"] = cta_loss(patches, words, *weights, reference_compat=compat)
            if cpa:
                with torch.no_grad():
                    self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
                losses["cpa"] = cpa_loss(*wholes, self.prototypes.weight)
        losses["loss"] = sum(self.loss_weights[name] * value for name, value in losses.items())
        return losses, features

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Weighted sum of the losses of a batch of ``ReportPairs``."""
        losses, features = self.losses(batch)
        logged = {**losses, "feature_spread": feature_spread(features)}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(batch["image"]))
        return losses["loss"]

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int) -> None:
        losses, _ = self.losses(batch)
        logged = {f"val_{name}": value for name, value in losses.items()}
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(batch["image"]))

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

    def configure_optimizers(self) -> dict[str, Any]:
        settings = self.hparams
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        total = total_steps(self.trainer)
        end = settings.min_lr / settings.lr
        scheduler = CosineWarmupScheduler(optimizer, round(total * settings.warmup_share), total, end_value=end)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def checkpoints(
        self, index: PreparedIndex, recipe: dict[str, Any]
    ) -> dict[str, EncoderCheckpoint | TimmCheckpoint | AlignmentCheckpoint]:
        """The image encoder, and with the text encoder beside it, if the validation loss has never been lower.

        Args:
            index: of the data.
            recipe: settings of the run, plain types.

        Returns:
            by file name.
        """
        if not self.is_best:
            return {}
        settings, network = self.hparams, self.image_encoder.network
        known = {
            "name": settings.network,
            "patch_size": tuple(settings.patch_size),
            "input_channels": settings.input_channels,
            "normalization": index.normalization,
            "method": type(self).__name__,
            "recipe": recipe,
            "num_cases": len(index.cases),
        }
        if settings.network in list_networks():
            overrides = settings.network_overrides or {}
            encoder = EncoderCheckpoint(encoder_weights(network), overrides=overrides, **known)
        else:
            encoder = TimmCheckpoint(_plain(network), **known)
        # LightningCLI adds how it found the class
        own = {name: value for name, value in settings.items() if not name.startswith("_")}
        together = AlignmentCheckpoint(_plain(self), own, self.trainer.datamodule.max_length)
        return {"encoder.pth": encoder, "alignment.pth": together}


def _plain(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
