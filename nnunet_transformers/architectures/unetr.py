"""UNETR, MONAI's network, in 2D and 3D: a ViT-B/16 whose layers 4, 7, 10 and 12 are the features of a CNN's decoder.

Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", WACV 2022. Blocks, decoder and head are
MONAI's modules under our names; position embeddings keep the shape of their grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from . import _monai
from ._arguments import check_strides, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network
from .layers import PositionEmbedding, recomputed

TOKEN = 16
# blocks, which MONAI fixes, and those after which the decoder gets the tokens
DEPTH, TAPS = 12, (3, 6, 9)
# modules of MONAI's network that are the decoder here; the first sees the image
DECODER = ("encoder1", "encoder2", "encoder3", "encoder4", "decoder5", "decoder4", "decoder3", "decoder2")


class UNETREncoder(nn.Module):
    """Learned positions, blocks and norm of MONAI's ViT.

    Args:
        vit: provides blocks and norm.
        grid_size: tokens per axis.
        dim: channels.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, vit: Any, grid_size: Sequence[int], dim: int, activation_checkpointing: bool) -> None:
        super().__init__()
        self.position = PositionEmbedding(grid_size, dim)
        self.blocks, self.norm = vit.blocks, vit.norm
        for block in self.blocks:
            block.norm_cross_attn = nn.Identity()  # unused, and DDP requires a gradient for every parameter
        self.activation_checkpointing = activation_checkpointing

    def forward(self, embedded: Tensor) -> list[Tensor]:
        """Map the stem's output (batch, dim, *grid) to four feature maps of the same shape, the deepest last."""
        x = self.position(embedded.flatten(2).transpose(1, 2))
        features = []
        for index, block in enumerate(self.blocks):
            x = recomputed(block, x, active=self.activation_checkpointing and self.training)
            if index in TAPS:
                features.append(x)
        grid = self.position.grid_size
        return [f.transpose(1, 2).unflatten(2, grid) for f in (*features, self.norm(x))]


class UNETRDecoder(nn.Module):
    """Residual blocks on image and features, and levels of a transposed convolution and a residual block."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in DECODER:
            self.add_module(name, getattr(network, name))
        self.seg_layers = nn.ModuleList([network.out])
        self.deep_supervision = False

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Map the image and the four feature maps, the deepest last, to logits."""
        x = features[3]
        for level, block, feature in zip(DECODER[4:7], DECODER[3:0:-1], features[2::-1], strict=True):
            x = self.get_submodule(level)(x, self.get_submodule(block)(feature))
        return self.seg_layers[0](self.get_submodule("decoder2")(x, self.get_submodule("encoder1")(image)))


class UNETR(SegmentationNetwork):
    """UNETR in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis, multiples of 16. The learned position embeddings depend on it.
        embed_dim, num_heads: channels and attention heads of the ViT's 12 blocks; the MLPs have four times as many.
        decoder_dim: channels at full resolution.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, more time.
        deep_supervision, auxiliary_heads: without effect, there is one output.
        strides: the plan's copy of the strides for nnU-Net; must match the network's.

    Raises:
        ValueError: on a patch size that is no multiple of 16.
        ModuleNotFoundError: if MONAI is not installed.

    Examples:
        >>> import torch
        >>> network = UNETR(input_channels=1, num_classes=3, patch_size=(64, 32), embed_dim=24, num_heads=2)
        >>> network(torch.zeros(1, 1, 64, 32)).shape
        torch.Size([1, 3, 64, 32])
    """

    extra = _monai.EXTRA
    deeply_supervised = False
    stem_channels_last = False
    removable: Mapping[str, str] = MappingProxyType(
        {"attention": r"(encoder\.blocks\.\d+\.attn)", "blocks": r"(encoder\.blocks\.\d+)"}
    )

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 768,
        num_heads: int = 12,
        decoder_dim: int = 16,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        stride = [TOKEN] * ndim
        self.strides = [[1] * ndim, stride]
        check_strides(strides, self.strides)
        (grid,) = token_grids(self.patch_size, [stride])
        self.grid_sizes, self.feature_channels = [grid] * 4, [embed_dim] * 4
        network = _monai.build(
            "UNETR",
            input_channels,
            num_classes,
            self.patch_size,
            feature_size=decoder_dim,
            hidden_size=embed_dim,
            mlp_dim=4 * embed_dim,
            num_heads=num_heads,
            spatial_dims=ndim,
        )
        self.stem = nn.Sequential(OrderedDict(proj=network.vit.patch_embedding.patch_embeddings))
        self.encoder = UNETREncoder(network.vit, grid, embed_dim, activation_checkpointing)
        self.decoder = UNETRDecoder(network)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem with the positions, each block, the norm."""
        blocks = [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm\.", (DEPTH,))]
        return {"stem": r"^stem\.|^encoder\.position", "blocks": blocks}

    def encode(self, image: Tensor) -> list[Tensor]:
        """Four feature maps at 1/16 of the resolution, the deepest last."""
        self.check_input(image)
        features: list[Tensor] = self.encoder(self.stem(image))
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Raises:
            ValueError: on an image of another size.
        """
        return self.decoder(image, self.encode(image))


register_network("unetr", UNETR)
