"""Alice: hidden parts are reconstructed, and what two people have in the same place agrees.

Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D Medical Image
Analysis", ICCV 2023, section 3. With encoders of several resolutions hidden cells get mask tokens, and the tokens are
those of the deepest feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from lightning import LightningModule
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from ...runs.callbacks import feature_spread
from ...runs.schedules import cosine_with_warmup, total_steps
from ...weights import EncoderCheckpoint, PrimusCheckpoint
from ..data.index import PreparedIndex
from ..encoder_checkpoint import encoder_checkpoint
from ..encoders.encoder import rest_drop_path
from ..encoders.masked import MaskedEncoder, VisibleEncoder, create_masked_encoder
from ..losses import CASA, CentredCrossEntropy, cosine_loss, info_nce_loss, masked_reconstruction_loss

LOSSES = ("reconstruction", "views", "alignment")
SIMILARITIES: dict[str, Callable[[int], Callable[[Tensor, Tensor], Tensor]]] = {
    "cosine": lambda dim: cosine_loss,
    "info_nce": lambda dim: info_nce_loss,
    "centred": CentredCrossEntropy,
}


class LightDecoder(nn.Module):
    """A few transformer blocks over all tokens, and the voxels of each cell from its token.

    Args:
        grid: cells per axis.
        dim: of the tokens.
        depth, num_heads: of the blocks.
        voxels: of a cell, over all channels.
    """

    def __init__(self, grid: Sequence[int], dim: int, depth: int, num_heads: int, voxels: int) -> None:
        super().__init__()
        self.position = nn.Parameter(trunc_normal_(torch.zeros(1, prod(grid), dim), std=0.02))
        self.blocks = nn.Sequential(*(Block(dim, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.voxels = nn.Linear(dim, voxels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, cells, dim) to the same, and (batch, cells, voxels)."""
        tokens = self.norm(self.blocks(tokens + self.position))
        return tokens, self.voxels(tokens)


class Alice(LightningModule):
    """Pretrain the encoder of any network on matched crops of two people.

    Args:
        network: registered name, or one of nnU-Net's Primus (``primus_s``), of which visible tokens alone are computed.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        losses: which of "reconstruction", "views" (two people's class tokens) and "alignment" (CASA) to train; each has
            weight 1.
        similarity: of the last two: "cosine" (the paper's), "info_nce" or "centred" (the release's).
        released_casa: the release's attention block in place of the paper's.
        decoder_depth, decoder_heads: of the light decoder.
        hidden_dim, bottleneck_dim: of the projection head.
        lr, weight_decay: AdamW's.
        warmup_epochs: with a linearly rising rate, before the cosine decay.
        tau: momentum of the target at the start; rises to 1 along a cosine.

    Raises:
        ValueError: if there is no loss, or an unknown one.
    """

    def __init__(
        self,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] = (64, 192, 192),
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        losses: Sequence[str] = LOSSES,
        similarity: str = "cosine",
        released_casa: bool = False,
        decoder_depth: int = 2,
        decoder_heads: int = 8,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        lr: float = 5e-5,
        weight_decay: float = 0.05,
        warmup_epochs: float = 100,
        tau: float = 0.996,
    ) -> None:
        super().__init__()
        unknown = [loss for loss in losses if loss not in LOSSES]
        if unknown or not losses:
            raise ValueError(f"losses must be some of {', '.join(LOSSES)}, got {losses}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        self.save_hyperparameters()
        self.encoder = self._new_encoder()
        grid, dim = self.encoder.grid, self.encoder.dim
        voxels = input_channels * prod(p // g for p, g in zip(patch_size, grid, strict=True))
        self.decoder = LightDecoder(grid, dim, decoder_depth, decoder_heads, voxels)
        self.head = self._new_head()
        if "reconstruction" not in losses:
            self.decoder.voxels.requires_grad_(False)
        if "views" in losses or "alignment" in losses:
            self.target = nn.ModuleDict({"encoder": self._new_encoder(), "head": self._new_head()})
            for name, part in self.target.items():
                part.load_state_dict(getattr(self, name).state_dict())
            deactivate_requires_grad(self.target)
            rest_drop_path(self.target)
        else:
            self.head.requires_grad_(False)
        if "views" in losses:
            self.view_similarity = SIMILARITIES[similarity](dim)
        if "alignment" in losses:
            self.casa = CASA(dim, released_casa)
            self.token_similarity = SIMILARITIES[similarity](dim)

    def _new_encoder(self) -> MaskedEncoder | VisibleEncoder:
        s = self.hparams
        return create_masked_encoder(s.network, s.input_channels, s.patch_size, s.network_overrides)

    def _new_head(self) -> DINOProjectionHead:
        dim = self.encoder.dim
        return DINOProjectionHead(dim, self.hparams.hidden_dim, self.hparams.bottleneck_dim, dim)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Loss of a batch of ``MatchedViews``."""
        online = {side: self._online(batch[f"{side}_masked"], batch[f"{side}_mask"]) for side in ("query", "key")}
        losses = {}
        if "reconstruction" in self.hparams.losses:
            losses["reconstruction"] = sum(
                masked_reconstruction_loss(o["voxels"], batch[f"{side}_masked"], batch[f"{side}_mask"])
                for side, o in online.items()
            )
        if hasattr(self, "target"):
            with torch.no_grad():
                target = {side: self.target["head"](self.target["encoder"](batch[f"{side}_intact"])) for side in online}
        if "views" in self.hparams.losses:
            losses["views"] = self._views(online, target, batch["is_matched"])
        if "alignment" in self.hparams.losses:
            losses["alignment"] = sum(
                self.token_similarity(
                    self.casa(o["tokens"], o["projected"]), self.casa(o["tokens"], target[side]).detach()
                )
                for side, o in online.items()
            )
        loss = sum(losses.values())
        pooled = online["query"]["tokens"].mean(1)
        logged = {**losses, "loss": loss, "matched": batch["is_matched"].float().mean()}
        logged["redraws"] = batch["redraws"].float().mean()
        logged["feature_spread"] = feature_spread(pooled)
        self.log_dict(logged, prog_bar=True, sync_dist=True, batch_size=len(pooled))
        return loss

    def _online(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(image, mask)
        decoded, voxels = self.decoder(tokens)
        return {"tokens": tokens, "voxels": self._image(voxels), "projected": self.head(decoded)}

    def _image(self, voxels: Tensor) -> Tensor:
        """(batch, cells, channels * voxels of a cell) to (batch, channels, *patch_size)."""
        grid, channels = self.encoder.grid, self.hparams.input_channels
        cell = [p // g for p, g in zip(self.hparams.patch_size, grid, strict=True)]
        ndim = len(grid)
        image = voxels.reshape(len(voxels), *grid, channels, *cell)
        axes = [axis for i in range(ndim) for axis in (1 + i, 2 + ndim + i)]
        return image.permute(0, 1 + ndim, *axes).reshape(len(voxels), channels, *self.hparams.patch_size)

    def _views(self, online: dict[str, dict[str, Tensor]], target: dict[str, Tensor], is_matched: Tensor) -> Tensor:
        """Class tokens of each person against the other's; pairs that are one person's are left out."""
        if not is_matched.any():
            return 0.0 * online["query"]["projected"].sum()
        cls = {side: o["projected"].mean(1)[is_matched] for side, o in online.items()}
        others = {side: tokens.mean(1)[is_matched] for side, tokens in target.items()}
        return self.view_similarity(cls["query"], others["key"]) + self.view_similarity(cls["key"], others["query"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning calls this once an optimiser step, however many batches were accumulated."""
        super().optimizer_step(*args, **kwargs)
        if hasattr(self, "target"):
            total = max(total_steps(self.trainer), self.global_step)
            tau = cosine_schedule(self.global_step, total, self.hparams.tau, 1.0)
            update_momentum(self.encoder, self.target["encoder"], tau)
            update_momentum(self.head, self.target["head"], tau)

    def configure_optimizers(self) -> dict[str, Any]:
        groups = param_groups_weight_decay(self, self.hparams.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.lr, betas=(0.9, 0.95))
        return cosine_with_warmup(optimizer, self.trainer, self.hparams.warmup_epochs)

    def checkpoints(
        self, index: PreparedIndex, recipe: dict[str, Any]
    ) -> dict[str, EncoderCheckpoint | PrimusCheckpoint]:
        """The encoder, see ``methods.qt_ssl``."""
        checkpoint = encoder_checkpoint(self.encoder.network, type(self).__name__, self.hparams, index, recipe)
        return {"encoder.pth": checkpoint}
