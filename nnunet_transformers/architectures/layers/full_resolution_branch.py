"""Features at full resolution for a segmentation head that sees the voxels within a token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .conv_norm_act import ConvNormAct
from .patch_transpose import patch_transpose


class FullResolutionBranch(nn.Module):
    """Join the finest tokens with a small convolutional branch on the image.

    A linear head draws the boundary within a token from that token alone. Here the tokens are up-sampled to
    ``channels``, a convolution of the image is added, and another one mixes them, as at the end of MiT's decoder
    (UniMiSS, appendix, "Network").

    Args:
        input_channels: image channels.
        dim: channels of a token.
        channels: channels at full resolution.
        stride: voxels per token, two or three of them. The convolutions have kernels of 1 along an axis of stride 1.
    """

    def __init__(self, input_channels: int, dim: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        ndim, kernel_size = len(stride), [3 if s > 1 else 1 for s in stride]
        self.image = ConvNormAct(input_channels, channels, kernel_size, (1,) * ndim)
        self.norm = nn.LayerNorm(dim)
        self.up = patch_transpose(dim, channels, stride)
        self.fuse = ConvNormAct(channels, channels, kernel_size, (1,) * ndim)

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Map tokens (batch, *grid, dim) and the image (batch, input_channels, *size) to (batch, channels, *size)."""
        return self.fuse(self.up(self.norm(tokens)).movedim(-1, 1) + self.image(image))
