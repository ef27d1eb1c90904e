"""Detector: an encoder's three deepest feature maps and YOLOv3's head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import Pooled
from .yolo import ANCHORS, WIDTHS, YOLOv3Head, anchor_fractions

MAPS = 3


class Detector(nn.Module):
    """Backbone and head.

    Args:
        backbone: as ``BackboneDescription.build`` returns it; its own pooling is not used.
        image_shape: (channels, height, width) of its input.
        num_classes: classes of boxes.
        anchors: width and height in pixels of an image of 416x416, by grid, the coarsest first.
        widths: see ``YOLOv3Head``.
        is_frozen: freeze the backbone, whose batch norm and dropout then stay in evaluation mode.

    Raises:
        ValueError: if the backbone has no three feature maps, each coarser than the one before.
    """

    anchors: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        num_classes: int,
        anchors: Sequence[Sequence[Sequence[float]]] = ANCHORS,
        widths: Sequence[int] = WIDTHS,
        is_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False) if is_frozen else backbone
        self.channels = feature_channels(backbone, image_shape)
        self.num_anchors, self.widths = len(anchors[0]), tuple(widths)
        self.reset_head(num_classes)
        self.register_buffer("anchors", anchor_fractions(anchors), persistent=False)
        self.is_frozen = is_frozen
        self.train()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a new one with random weights."""
        self.head = YOLOv3Head(self.channels, num_classes, self.num_anchors, self.widths)

    def train(self, mode: bool = True) -> Detector:
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the outputs of ``YOLOv3Head`` from images (batch, channels, height, width)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            maps = feature_maps(self.backbone, image)
        outputs: list[Tensor] = self.head(maps)
        return outputs


def feature_maps(backbone: Any, image: Tensor) -> list[Tensor]:
    """Return the three deepest feature maps of a backbone, the finest first."""
    if isinstance(backbone, Pooled):
        return backbone.encoder.encode(image)[-MAPS:]
    maps: list[Tensor] = backbone.forward_intermediates(image, indices=MAPS, intermediates_only=True)
    return maps


def feature_channels(backbone: nn.Module, image_shape: Sequence[int]) -> list[int]:
    """Return the channels of ``feature_maps``.

    Raises:
        ValueError: if there are fewer than three, or one is not coarser than the one before.
    """
    twin = deepcopy(backbone).to("meta").eval()
    with torch.no_grad():
        try:
            maps = feature_maps(twin, torch.empty(1, *image_shape, device="meta"))
        except (AttributeError, AssertionError):
            maps = []
    if len(maps) < MAPS or any(b.shape[2] >= a.shape[2] for a, b in pairwise(maps)):
        raise ValueError(
            "a detector needs an encoder with three feature maps, each coarser than the one before, such as resnet50 "
            "or unet2022_tiny; a plain ViT has one"
        )
    return [m.shape[1] for m in maps]
