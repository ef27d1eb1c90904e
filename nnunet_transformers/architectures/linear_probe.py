"""A linear probe for segmentation: linear heads on the feature maps of a frozen encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._network import SegmentationNetwork


class LinearProbe(nn.Module):
    """Normalise each feature map of a frozen encoder, classify it by a 1x1 convolution, sum logits at full resolution.

    Interpolation and summation are linear, so this is one linear classifier of the features of all maps at a voxel. The
    batch norm has no affine parameters (https://arxiv.org/abs/2111.06377, appendix A.1).

    Args:
        network: its stem and encoder are frozen, its decoder is dropped.
        num_classes: output channels.
    """

    def __init__(self, network: SegmentationNetwork, num_classes: int) -> None:
        super().__init__()
        ndim = len(network.patch_size)
        norm, convolution = ((nn.BatchNorm2d, nn.Conv2d), (nn.BatchNorm3d, nn.Conv3d))[ndim - 2]
        network.decoder = nn.Identity()
        self.network = network.requires_grad_(False)
        self.heads = nn.ModuleList(
            nn.Sequential(norm(channels, affine=False), convolution(channels, num_classes, 1))
            for channels in network.feature_channels
        )

    def train(self, mode: bool = True) -> LinearProbe:
        """Set the mode of the heads; the frozen encoder stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size)."""
        with torch.no_grad():
            features = self.network.encode(image)
        mode = {4: "bilinear", 5: "trilinear"}[image.dim()]
        logits = [head(f) for head, f in zip(self.heads, features, strict=True)]
        resized = [F.interpolate(x, size=image.shape[2:], mode=mode, align_corners=False) for x in logits]
        return sum(resized[1:], start=resized[0])
