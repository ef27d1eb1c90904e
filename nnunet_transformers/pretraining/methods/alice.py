"""Alice: masked reconstruction plus cross-subject feature alignment with an EMA target network.

Jiang et al., "Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D Medical Image
Analysis", ICCV 2023, section 3. The paper's encoder is a plain ViT. In an encoder of several resolutions the tokens are
the cells of the deepest feature map, and a mask token replaces masked cells. Weight decay, momentum of the target,
depth and heads of the decoder and widths of the heads are ours: the paper states none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightly.models.modules.heads import DINOProjectionHead
from timm.optim import param_groups_weight_decay
from torch import Tensor

from ..encoder_pretraining import EncoderPretraining, check_choice
from ..encoders.masked import create_masked_encoder, visible_cells
from ..encoders.masked_decoder import MaskedDecoder
from ..losses import CASA, SIMILARITIES, CentredCrossEntropy, masked_reconstruction_loss

LOSSES = ("reconstruction", "views", "alignment")
SIDES = ("query", "key")


class OnlineOutput(NamedTuple):
    """Output of the online network for the masked views of one side.

    Attributes:
        visible: output of the encoder for visible cells, (batch, visible, dim).
        image: reconstruction, (batch, channels, *patch_size).
        projected: output of the projection head, (batch, cells, dim).
    """

    visible: Tensor
    image: Tensor
    projected: Tensor


class Alice(EncoderPretraining):
    """Pretrain the encoder of any network on matched crops of two subjects.

    Args:
        network: registered name, or a size of nnU-Net's Primus (``primus_s``), which processes visible tokens only.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        losses: which of "reconstruction" (l_r), "views" (l_dv, class tokens of two subjects) and "alignment" (l_st,
            CASA) to train; each has weight 1.
        similarity: loss of "views" and "alignment": "cosine" (the paper's), "info_nce" or "centred" (the release's).
        released_casa: use the release's attention block instead of the paper's.
        decoder_depth, decoder_heads: number of blocks of the light decoder, and of their attention heads.
        hidden_dim, bottleneck_dim: widths of the projection head.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW; none on biases and vectors.
        warmup_epochs: epochs of linear warm-up before the cosine decay.
        tau: momentum of the target network at the start; rises to 1 along a cosine.

    Raises:
        ValueError: if there is no loss, or an unknown loss or similarity; as ``create_masked_encoder``.
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
        check_choice("losses", losses, LOSSES)
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        self.save_hyperparameters()
        self.terms = tuple(losses)
        encoders = [create_masked_encoder(network, input_channels, patch_size, network_overrides) for _ in range(2)]
        grid, dim = encoders[0].grid, encoders[0].dim
        heads = [DINOProjectionHead(dim, hidden_dim, bottleneck_dim, dim) for _ in range(2)]
        self.encoder, self.head = encoders[0], heads[0]
        self.decoder = MaskedDecoder(grid, dim, decoder_depth, decoder_heads, patch_size, input_channels)
        # freeze unused parameters: DDP requires a gradient for every trainable parameter
        if "reconstruction" not in losses:
            self.decoder.voxels.requires_grad_(False)
        if "views" in losses or "alignment" in losses:
            self.create_target(tau, encoder=encoders[1], head=heads[1])
        else:
            self.head.requires_grad_(False)
        if "views" in losses:
            self.view_similarity = SIMILARITIES[similarity](dim)
        if "alignment" in losses:
            self.casa = CASA(dim, released_casa)
            self.token_similarity = SIMILARITIES[similarity](dim)

    @property
    def network(self) -> Any:
        return self.encoder.network

    def losses(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of a batch of ``MatchedViews``, each summed over query and key."""
        masks = [batch[f"{side}_mask"] for side in SIDES]
        # a GPU's host waits here, once for both sides
        visible = visible_cells(torch.cat(masks)).chunk(2)
        online = {
            side: self._online(batch[f"{side}_masked"], mask, cells)
            for side, mask, cells in zip(SIDES, masks, visible, strict=True)
        }
        losses: dict[str, Tensor] = {}
        if "reconstruction" in self.terms:
            errors = [
                masked_reconstruction_loss(online[side].image, batch[f"{side}_masked"], batch[f"{side}_mask"])
                for side in SIDES
            ]
            losses["reconstruction"] = torch.stack(errors).sum()
        if self.target is not None:
            with torch.no_grad():
                target = {
                    side: self._target(batch[f"{side}_intact"], batch.get(f"{side}_target_mask")) for side in SIDES
                }
        if "views" in self.terms:
            losses["views"] = self._views(online, target, batch["is_matched"])
        if "alignment" in self.terms:
            distances = [
                self.token_similarity(
                    self.casa(online[side].visible, online[side].projected),
                    self.casa(online[side].visible, target[side]),
                )
                for side in SIDES
            ]
            losses["alignment"] = torch.stack(distances).sum()
        return losses, online["query"].visible.mean(1)

    def _online(self, image: Tensor, mask: Tensor, cells: Tensor) -> OnlineOutput:
        tokens = self.encoder(image, mask)
        decoded, reconstruction = self.decoder(tokens)
        # those of masked cells are a ViT's mask token, equal everywhere
        visible = tokens.gather(1, cells[..., None].expand(-1, -1, tokens.shape[2]))
        return OnlineOutput(visible, reconstruction, self.head(decoded))

    def _target(self, image: Tensor, mask: Tensor | None) -> Tensor:
        return self.target["head"](self.target["encoder"](image, mask))

    def _views(self, online: Mapping[str, OnlineOutput], target: Mapping[str, Tensor], is_matched: Tensor) -> Tensor:
        """Align the class tokens of each subject with the other subject's (l_dv), omitting pairs within one subject."""
        # a GPU's host waits here, once
        matched = is_matched.nonzero().squeeze(1)
        if not len(matched):
            if isinstance(self.view_similarity, CentredCrossEntropy):
                for _ in SIDES:  # other processes wait in each call
                    self.view_similarity.without_rows()
            return 0.0 * online["query"].projected.sum()
        query, key = (online[side].projected.mean(1)[matched] for side in SIDES)
        query_target, key_target = (target[side].mean(1)[matched] for side in SIDES)
        return self.view_similarity(query, key_target) + self.view_similarity(key, query_target)

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        matching = {"matched": batch["is_matched"].float().mean(), "redraws": batch["redraws"].float().mean()}
        self.log_dict(matching, prog_bar=True, sync_dist=True, batch_size=len(batch["redraws"]))
        return super().training_step(batch, batch_index)

    def create_optimizer(self) -> torch.optim.Optimizer:
        groups = param_groups_weight_decay(self, self.hparams.weight_decay)
        return torch.optim.AdamW(groups, lr=self.hparams.lr, betas=(0.9, 0.95))
