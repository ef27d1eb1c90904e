"""MAE: reconstruction of masked cells, for encoders of every kind.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, https://arxiv.org/abs/2111.06377, in the form
of OpenMind's comparison (Wald et al., "An OpenMind for 3D medical vision self-supervised learning", ICCV 2025,
https://arxiv.org/abs/2412.17041) and its code, nnssl: the error of the z-scored voxels themselves, not normalised
within cells. A ViT encodes visible tokens only. In encoders of several resolutions a mask token replaces the embedded
patches of masked cells, and CNNs compute visible places only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..encoders.map_decoder import create_map_decoder
from ..encoders.sparse import create_map_encoder
from ..losses import masked_reconstruction_loss
from ..openmind import OpenMindPretraining


class MAE(OpenMindPretraining):
    """Pretrain the encoder of any network by reconstruction of masked cells from the visible ones.

    Args:
        network: registered name, or a size of nnU-Net's Primus (``primus_m``), which processes visible tokens only.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of a registered network.
        mask_size: largest edge of a masked cell in voxels; the cells are those of the coarsest feature map that has
            such small ones. Primus masks tokens.
        decoder_depth, decoder_heads: number of layers of the decoder, and of their attention heads, for encoders with
            a single feature map; others have a U-Net decoder.
        optimizer: "adamw", for transformers, or "sgd" with Nesterov momentum, for CNNs.
        lr: peak learning rate.
        weight_decay: of the optimiser.
        warmup_epochs: epochs of linear warm-up before the polynomial decay.

    Raises:
        ValueError: as ``create_map_encoder`` and ``create_map_decoder``.
    """

    def __init__(
        self,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] = (160, 160, 160),
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        mask_size: int = 16,
        decoder_depth: int = 2,
        decoder_heads: int = 12,
        optimizer: str = "adamw",
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup_epochs: float = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = create_map_encoder(network, input_channels, patch_size, network_overrides, mask_size)
        self.decoder = create_map_decoder(
            self.encoder.map_shapes, patch_size, input_channels, decoder_depth, decoder_heads
        )

    @property
    def network(self) -> Any:
        return self.encoder.network

    def losses(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the loss of a batch of ``MaskedCrops``; that of a mean prediction is the variance of the voxels.

        Args:
            batch: images (batch, channels, *patch_size) and masks (batch, *grid), true for masked cells.
        """
        image, mask = batch
        maps = self.encoder.maps(image, mask)
        error = masked_reconstruction_loss(self.decoder(maps), image, mask, normalise=False)
        # places of the deepest map: if they are alike, so are images
        return {"reconstruction": error}, maps[-1].flatten(2).transpose(1, 2).flatten(0, 1)
