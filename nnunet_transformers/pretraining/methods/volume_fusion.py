"""VolumeFusion: segmentation of the boxes in which two images are fused, by their fusion coefficient.

Wang et al., "MIS-FM: 3D Medical Image Segmentation using Foundation Models Pretrained on a Large-Scale Unannotated
Dataset", https://arxiv.org/abs/2306.16925, section 3, with the optimisers of OpenMind's comparison (Wald et al., ICCV
2025, https://arxiv.org/abs/2412.17041) and its code, nnssl. Unlike there, the decoder is MAE's, the same for every
network, and only the encoder is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor

from ...architectures import create_encoder
from ..encoders.map_decoder import create_map_decoder
from ..encoders.masked import map_shapes
from ..openmind import OpenMindPretraining


class VolumeFusion(OpenMindPretraining):
    """Pretrain the encoder of any network by segmentation of fused boxes.

    Args:
        network: registered name.
        patch_size: voxels per axis.
        input_channels: image channels.
        network_overrides: arguments of the network.
        num_classes: number of fusion coefficients, from 0 to 1; of the data module as well.
        decoder_depth, decoder_heads, optimizer, lr, weight_decay, warmup_epochs: as for ``MAE``.

    Raises:
        ValueError: as ``create_encoder`` and ``create_map_decoder``.
    """

    def __init__(
        self,
        network: str = "qt_unet_tiny",
        patch_size: Sequence[int] = (160, 160, 160),
        input_channels: int = 1,
        network_overrides: dict[str, Any] | None = None,
        num_classes: int = 5,
        decoder_depth: int = 2,
        decoder_heads: int = 12,
        optimizer: str = "adamw",
        lr: float = 3e-4,
        weight_decay: float = 0.05,
        warmup_epochs: float = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # create_encoder freezes what the deepest map does not depend on
        self.encoder = create_encoder(network, input_channels, patch_size, **(network_overrides or {}))
        self.encoder.requires_grad_()
        self.decoder = create_map_decoder(
            map_shapes(self.encoder), patch_size, num_classes, decoder_depth, decoder_heads
        )
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
        self.criterion = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)

    def losses(self, batch: Sequence[Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Compute nnU-Net's loss, cross-entropy minus Dice of all classes, of a batch of ``FusedCrops``.

        Args:
            batch: fused images (batch, channels, *patch_size) and classes (batch, *patch_size).
        """
        image, classes = batch
        maps = self.encoder.encode(image)
        loss = self.criterion(self.decoder(maps), classes[:, None])
        # places of the deepest map: if they are alike, so are images
        return {"segmentation": loss}, maps[-1].flatten(2).transpose(1, 2).flatten(0, 1)
