"""A frozen encoder with a linear head: how much of a segmentation its features hold by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._network import SegmentationNetwork


class LinearProbe(nn.Module):
    """Feature maps of a frozen encoder, each normalised and through a 1x1 convolution, added up at full resolution.

    To resize and to add are linear, so that this is one linear classifier of all maps' features at a voxel. The
    normalisation has no parameters (https://arxiv.org/abs/2111.06377, appendix A.1).

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
        """As of any module, but the frozen encoder stays as it is used."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, *patch size) to logits (batch, num_classes, *patch size)."""
        with torch.no_grad():
            features = self.network.encode(image)
        mode = {4: "bilinear", 5: "trilinear"}[image.dim()]
        logits = [head(f) for head, f in zip(self.heads, features, strict=True)]
        resized = [F.interpolate(x, size=image.shape[2:], mode=mode, align_corners=False) for x in logits]
        return sum(resized[1:], start=resized[0])
