"""MiT for image classification: the encoder with the SSL token of pretraining (UniMiSS, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .._arguments import check_image_size
from .._backbone import Backbone
from .trunk import ENCODER_NORM_EPS, MiTTrunk, init_weights


class MiTClassifier(Backbone):
    """Encoder and a linear head on the mean of the SSL token and the averaged patch tokens.

    Args:
        input_channels: image channels.
        num_classes: outputs; 0 for no head.
        patch_size: edge lengths in voxels, two or three of them.
        trunk_arguments: further arguments of ``MiTTrunk``; those of the decoder have no effect.

    Raises:
        ValueError: as ``MiTTrunk``.

    Examples:
        >>> import torch
        >>> network = MiTClassifier(1, 2, (32, 64, 64), patch_embed_stride=(2, 4, 4))
        >>> network(torch.zeros(1, 1, 32, 64, 64)).shape
        torch.Size([1, 2])
    """

    def __init__(self, input_channels: int, num_classes: int, patch_size: Sequence[int], **trunk_arguments: Any):
        trunk = MiTTrunk(input_channels, patch_size, ssl_token=True, **trunk_arguments)
        dim = trunk.dims[-1]
        super().__init__(trunk.patch_size, input_channels, dim)
        self.stem, self.encoder = trunk.stem, trunk.encoder
        self.norm = nn.LayerNorm(dim, eps=ENCODER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.head.apply(init_weights)

    def features(self, image: Tensor) -> Tensor:
        """Average the normalised SSL token and the mean of the normalised patch tokens.

        UniMiSS classifies both and averages the logits; since the head is linear, averaging the features is the same.

        Args:
            image: (batch, input_channels, *patch_size).

        Returns:
            (batch, head_hidden_size).

        Raises:
            ValueError: on an image of another size.
        """
        check_image_size(image, self.patch_size)
        features, token = self.encoder(self.stem(image))
        average = self.norm(features[-1].flatten(2).transpose(1, 2)).mean(dim=1)
        return (self.norm(token).squeeze(1) + average) / 2

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to raw logits (batch, num_classes), or to features without a head.

        Raises:
            ValueError: on an image of another size.
        """
        return self.head(self.features(image))
