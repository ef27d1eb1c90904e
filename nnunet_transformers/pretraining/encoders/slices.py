"""Logits of images and of volumes, the latter as volumes and as slices (UniMiSS, ECCV 2022, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor

from ...architectures import NetworkPair


def cross_dimension_logits(pair: NetworkPair, head: DINOProjectionHead, views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Compute the logits of views in every dimensionality that they have.

    Args:
        pair: network in 2D and 3D.
        head: of its outputs.
        views: each images (batch, channels, height, width) or volumes (batch, 1, depth, height, width).

    Returns:
        the logits of the views, (batch, output_dim) each; for volumes also those of their slices, as a second entry.
    """
    logits = [[head(pair(view)) for view in views]]
    return [*logits, [slice_logits(pair, head, view) for view in views]] if views[0].dim() == 5 else logits


def slice_logits(pair: NetworkPair, head: DINOProjectionHead, volumes: Tensor) -> Tensor:
    """Compute the logits of all slices in the 2D form, averaged over each volume.

    The average is taken of the normalised features before the last layer: that layer is linear, so the result is the
    same, and the layer runs once instead of once per slice.

    Args:
        pair: network in 2D and 3D.
        head: of its outputs.
        volumes: (batch, 1, depth, height, width).

    Returns:
        (batch, output_dim).
    """
    form: Any = pair.form_2d
    images = volumes.transpose(1, 2).flatten(0, 1).expand(-1, form.input_channels, -1, -1)
    if images.shape[2:] != form.patch_size:
        images = F.interpolate(images, size=form.patch_size, mode="bilinear", align_corners=False)
    features = F.normalize(head.layers(pair(images)), dim=-1)
    return head.last_layer(features.unflatten(0, (len(volumes), -1)).mean(1))
