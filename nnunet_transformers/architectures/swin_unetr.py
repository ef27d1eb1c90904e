"""SwinUNETR and its second version, MONAI's networks, in 2D and 3D.

Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images", BrainLes
2021; He et al., "SwinUNETR-V2: Stronger Swin Transformers with Stagewise Convolutions for 3D Medical Image
Segmentation", MICCAI 2023. Encoder, decoder and head are MONAI's modules under our names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from . import _monai
from ._arguments import check_depth, check_strides, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network

# modules of MONAI's network that are the decoder here; the first sees the image
BLOCKS = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
LEVELS = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")
# MONAI's names of encoder and stem, and those of its pretraining code and releases: the encoder was first called
# swin_vit; in model_swinvit.pt (Tang et al., CVPR 2022) it has no name of its own, and linear layers are called fc; in
# ssl_pretrained_weights.pth (Valanarasu et al., MIDL 2024) each stage is in a list of a list
ENCODER_NAMES = (
    (r"^(?:.*\.)?(?:swinViT|swin_vit)\.", "encoder."),
    (r"^(?:.*\.)?patch_embed\.", "stem."),
    (r"^(?:.*\.)?(layers\dc?\.0\.)(?:0\.)?", r"encoder.\1"),
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
)
DECODER_NAMES = (
    (rf"^(?:.*\.)?({'|'.join((*BLOCKS, *LEVELS))})\.", r"decoder.\1."),
    (r"^(?:.*\.)?out\.conv\.", "decoder.seg_layers.0.conv."),
)


class SwinUNETRDecoder(nn.Module):
    """Residual blocks on image and features, and levels of a transposed convolution and a residual block."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        for name in (*BLOCKS, *LEVELS):
            self.add_module(name, getattr(network, name))
        self.seg_layers = nn.ModuleList([network.out])
        self.deep_supervision = False

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Map the image and the five feature maps, finest first, to logits."""
        on_image, *on_features, on_deepest = (self.get_submodule(name) for name in BLOCKS)
        # the fourth map is a skip as it is
        finer = [on_image(image), *(block(f) for block, f in zip(on_features, features[:3], strict=True)), features[3]]
        x = on_deepest(features[4])
        for name, skip in zip(LEVELS, finer[::-1], strict=True):
            x = self.get_submodule(name)(x, skip)
        return self.seg_layers[0](x)


class SwinUNETR(SegmentationNetwork):
    """SwinUNETR in 2D and 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis, multiples of 32.
        embed_dim: channels of the finest tokens, doubled at each stage; a multiple of 12.
        depths, num_heads: blocks and attention heads of the four stages.
        window_size: edge of the attention windows.
        residual_convolutions: a residual block in front of each stage, SwinUNETR-V2.
        drop_path_rate: stochastic depth rate of the last block.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, more time.
        deep_supervision, auxiliary_heads: without effect, there is one output.
        strides: the plan's copy of the strides for nnU-Net; must match the network's.

    Raises:
        ValueError: on a patch size that is no multiple of 32.
        ModuleNotFoundError: if MONAI is not installed.

    Examples:
        >>> import torch
        >>> network = SwinUNETR(input_channels=1, num_classes=3, patch_size=(64, 32), embed_dim=12)
        >>> network(torch.zeros(1, 1, 64, 32)).shape
        torch.Size([1, 3, 64, 32])
    """

    extra = _monai.EXTRA
    deeply_supervised = False
    stem_channels_last = False
    removable: Mapping[str, str] = MappingProxyType({"attention": r"(encoder\.layers\d\.0\.blocks\.\d+\.attn)"})

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        residual_convolutions: bool = False,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        ndim = len(self.patch_size)
        steps = [[2] * ndim] * 5
        self.strides = [[1] * ndim, *steps]
        check_strides(strides, self.strides)
        check_depth(depths, "depths")
        self.grid_sizes = token_grids(self.patch_size, steps)
        self.feature_channels = [embed_dim * 2**i for i in range(5)]
        network = _monai.build(
            "SwinUNETR",
            input_channels,
            num_classes,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            feature_size=embed_dim,
            dropout_path_rate=drop_path_rate,
            use_checkpoint=activation_checkpointing,
            spatial_dims=ndim,
            use_v2=residual_convolutions,
        )
        encoder = network.swinViT
        self.stem, encoder.patch_embed = encoder.patch_embed, nn.Identity()
        for attention in _attentions(encoder):
            # a constant, but no buffer: it would be in the state dict, and DDP sends buffers in every step
            attention.relative_position_index = attention._buffers.pop("relative_position_index")
        self.encoder, self.decoder = encoder, SwinUNETRDecoder(network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SwinUNETR:
        super()._apply(fn, recurse)
        for attention in _attentions(self.encoder):
            attention.relative_position_index = fn(attention.relative_position_index)
        return self

    def no_weight_decay(self) -> set[str]:
        """The tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(".relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem and each stage."""
        return {"stem": r"^stem\.", "blocks": r"^encoder\.layers(\d)"}

    def encode(self, image: Tensor) -> list[Tensor]:
        """Five normalised feature maps, from 1/2 to 1/32 of the resolution."""
        self.check_input(image)
        features: list[Tensor] = self.encoder(self.stem(image))
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Raises:
            ValueError: on an image of another size.
        """
        return self.decoder(image, self.encode(image))


def _attentions(encoder: nn.Module) -> list[Any]:
    return [module for name, module in encoder.named_modules() if name.endswith(".attn")]


def is_monais(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether weights have the names of MONAI's SwinUNETR, or of a pretraining of its encoder.

    They are names of modules within a module that others call so too. Ours have a stem in place of ``patch_embed``.
    """
    named = (r"(?:swinViT|swin_vit)\.(?:patch_embed|layers\dc?)\.",)
    unnamed = (r"patch_embed\.proj\.", r"layers1\.0\.")
    return any(
        all(any(re.search(rf"(?:^|\.){part}", name) for name in state_dict) for part in parts)
        for parts in (named, unnamed)
    )


def from_monai(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the weights of MONAI's SwinUNETR, or of its encoder, to those of ``SwinUNETR``.

    Args:
        state_dict: by its names, possibly with a prefix of wrappers; tables of indices are left out. Of
            ``ssl_pretrained_weights.pth`` the encoder alone is translated, as by MONAI: its decoder restores images.
            Of two encoders, such as a student and a teacher, the first is translated; the other keeps its names.
    """
    is_nested = any(re.search(r"(?:^|\.)layers1\.0\.0\.", name) for name in state_dict)
    patterns = ENCODER_NAMES if is_nested else ENCODER_NAMES + DECODER_NAMES
    renamed: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        ours = name
        for pattern, replacement in patterns:
            ours = re.sub(pattern, replacement, ours)
        if not ours.endswith(".relative_position_index"):
            renamed[name if ours in renamed else ours] = value
    return renamed


register_network("swin_unetr", SwinUNETR)
register_network("swin_unetr_v2", SwinUNETR, residual_convolutions=True)
