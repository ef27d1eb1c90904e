"""Logits of images, volumes and the slices of volumes (UniMiSS, https://arxiv.org/abs/2112.09356, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor

from ...architectures import NetworkPair


def cross_dimension_logits(pair: NetworkPair, head: DINOProjectionHead, views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Compute the logits of views in every dimensionality: images in 2D, volumes in 3D and, by their slices, in 2D.

    Args:
        pair: 2D and 3D form of the network.
        head: projection head.
        views: images (batch, channels, height, width) or volumes (batch, 1, depth, height, width).

    Returns:
        for each dimensionality the logits of the views, (batch, output_dim) each: of images one entry, of volumes two,
        those of the volumes and those of their slices.
    """
    logits = [[head(pair(view)) for view in views]]
    return [*logits, [slice_logits(pair, head, view) for view in views]] if views[0].dim() == 5 else logits


def slice_logits(pair: NetworkPair, head: DINOProjectionHead, volumes: Tensor) -> Tensor:
    """Compute the logits of slices by the 2D form, averaged over the slices of each volume.

    The last layer is linear, so averaging the normalised features before it gives the average of its outputs and saves
    running it for every slice. Slices of another size than ``pair.slice_size`` are resized to it.

    Args:
        pair: 2D and 3D form of the network.
        head: projection head.
        volumes: (batch, 1, depth, height, width).

    Returns:
        (batch, output_dim).
    """
    form: Any = pair.form_2d
    images = volumes.transpose(1, 2).flatten(0, 1).expand(-1, form.input_channels, -1, -1)
    if images.shape[2:] != pair.slice_size:
        images = F.interpolate(images, size=pair.slice_size, mode="bilinear", align_corners=False)
    features = F.normalize(head.layers(pair(images)), dim=-1)
    return head.last_layer(features.unflatten(0, (len(volumes), -1)).mean(1))
