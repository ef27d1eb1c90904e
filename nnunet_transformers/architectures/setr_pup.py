"""SETR-PUP in 2D: timm's ViT and a decoder that alternates convolution and up-sampling.

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR 2021,
as MGCA segments with it (Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
Representation Learning", NeurIPS 2022, supplement B.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2, prod
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct as ConvBatchNormReLU  # timm's defaults
from timm.layers import resample_patch_embed
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ._arguments import PerAxis, check_depth, check_strides, per_axis, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network, register_timm_family
from .layers import PositionEmbedding, recomputed


class ViTEncoder(nn.Module):
    """Class token, register tokens, position embeddings, blocks and norm of timm's ViT.

    The class token's position embedding is part of the class token: only their sum matters.

    Args:
        vit: provides class token, register tokens, blocks and norm.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, vit: VisionTransformer, activation_checkpointing: bool) -> None:
        super().__init__()
        assert vit.cls_token is not None
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.position = PositionEmbedding(vit.patch_embed.grid_size, vit.embed_dim)
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.activation_checkpointing = activation_checkpointing

    def no_weight_decay(self) -> set[str]:
        """The class and register tokens; ``PositionEmbedding`` states the positions."""
        return {"cls_token"} if self.reg_token is None else {"cls_token", "reg_token"}

    def forward(self, tokens: Tensor) -> Tensor:
        """Map patch tokens (batch, length, dim) to a feature map (batch, dim, *grid)."""
        x = with_prefix(self.position(tokens), self.cls_token, self.reg_token)
        for block in self.blocks:
            x = recomputed(block, x, active=self.activation_checkpointing and self.training)
        return feature_map(self.norm(x), self.position.grid_size)


def with_prefix(tokens: Tensor, *prefix: Tensor | None) -> Tensor:
    """Put learned tokens (1, n, dim) in front of a sequence (batch, length, dim)."""
    return torch.cat([*(p.expand(len(tokens), -1, -1) for p in prefix if p is not None), tokens], dim=1)


def feature_map(sequence: Tensor, grid_size: Sequence[int]) -> Tensor:
    """Drop the tokens in front of a sequence (batch, length, dim) and return the others as (batch, dim, *grid)."""
    return sequence[:, -prod(grid_size) :].transpose(1, 2).unflatten(2, tuple(grid_size))


class SETRPUPDecoder(nn.Module):
    """A linear layer, then levels of convolution, batch norm, ReLU and bilinear up-sampling, deepest first.

    Args:
        dim: channels of the tokens.
        dims: channels of each level.
        steps: up-sampling factor of each level, per axis.
        num_classes: output channels.
        auxiliary_heads: build the heads of deep supervision.
        deep_supervision: return all outputs.
    """

    def __init__(
        self,
        dim: int,
        dims: Sequence[int],
        steps: Sequence[Sequence[int]],
        num_classes: int,
        auxiliary_heads: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.steps = [tuple(step) for step in steps]
        self.proj = nn.Linear(dim, dim)
        self.levels = nn.ModuleList(ConvBatchNormReLU(before, after, 3) for before, after in pairwise([dim, *dims]))
        head_dims = dims[::-1] if auxiliary_heads else dims[-1:]
        self.seg_layers = nn.ModuleList(nn.Conv2d(d, num_classes, 3, padding=1) for d in head_dims)

    def forward(self, features: Tensor) -> Tensor | list[Tensor]:
        """Map (batch, dim, *grid) to logits (a list of them under deep supervision)."""
        x = self.proj(features.movedim(1, -1)).movedim(-1, 1)
        maps: list[Tensor] = []
        for level, step in zip(self.levels, self.steps, strict=True):
            x = level(x)
            x = F.interpolate(x, [n * s for n, s in zip(x.shape[2:], step, strict=True)], mode="bilinear")
            maps.insert(0, x)
        if not self.deep_supervision:
            return self.seg_layers[0](x)
        return [head(m) for head, m in zip(self.seg_layers, maps, strict=True)]


class SETRPUP(SegmentationNetwork):
    """SETR-PUP in 2D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: height and width in pixels. The learned position embeddings depend on it.
        embed_dim, depth, num_heads: channels, blocks and attention heads of the ViT; the defaults are ViT-B's.
        patch_embed_stride: pixels per token, powers of two, one integer or one per axis.
        decoder_dims: channels of the decoder's levels, deepest first; one level for each factor of 2 in the stride.
        num_registers: register tokens beside the class token, as in DINOv2's ``reg4`` networks.
        drop_path_rate: stochastic depth rate of the last block.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, more time.
        deep_supervision: return a list of logits, full resolution first.
        auxiliary_heads: build the heads of deep supervision; by default only under ``deep_supervision``.
        strides: the plan's copy of the strides for nnU-Net; must match the other arguments.

    Raises:
        ValueError: on a patch size that is not 2D or that the stride does not divide, and on arguments that contradict
            each other.

    Examples:
        >>> import torch
        >>> network = SETRPUP(input_channels=1, num_classes=3, patch_size=(64, 64), embed_dim=192, num_heads=3)
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    dimensions = (2,)
    removable: Mapping[str, str] = MappingProxyType(
        {"attention": r"(encoder\.blocks\.\d+\.attn)", "blocks": r"(encoder\.blocks\.\d+)"}
    )
    has_skips = False
    token_arguments = ("patch_embed_stride",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_embed_stride: PerAxis = 16,
        decoder_dims: Sequence[int] = (512, 256, 128, 64),
        num_registers: int = 0,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool | None = None,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        stride = per_axis(patch_embed_stride, 2, "patch_embed_stride")
        if any(s & (s - 1) for s in stride) or max(stride) != 2 ** len(decoder_dims):
            raise ValueError(
                f"patch_embed_stride must be powers of two, and decoder_dims have an entry for each factor of 2 in "
                f"the larger one, got {stride} and {len(decoder_dims)} entries"
            )
        check_depth((depth,), "depth")
        # finest first; an axis with a smaller stride reaches full resolution sooner
        steps = [[2 if s >> level > 1 else 1 for s in stride] for level in range(len(decoder_dims))]
        self.strides = [[1, 1], *steps]
        check_strides(strides, self.strides)
        self.grid_sizes, self.feature_channels = token_grids(self.patch_size, [stride]), [embed_dim]
        self.depth = depth
        self.stem, self.encoder = self._build_vit(
            {
                "img_size": self.patch_size,
                "patch_size": stride,
                "in_chans": input_channels,
                "num_classes": 0,
                "embed_dim": embed_dim,
            },
            num_heads,
            num_registers,
            # not in timm's constructor, which reads the rates from a tensor: a planner's fake tensors have no data
            np.linspace(0, drop_path_rate, depth).tolist(),
            activation_checkpointing,
        )
        if auxiliary_heads is None:
            auxiliary_heads = deep_supervision
        self.decoder = SETRPUPDecoder(
            embed_dim, decoder_dims, steps[::-1], num_classes, auxiliary_heads, deep_supervision
        )

    def _build_vit(
        self,
        arguments: dict[str, Any],
        num_heads: int,
        num_registers: int,
        drop_path_rates: Sequence[float],
        activation_checkpointing: bool,
    ) -> tuple[nn.Module, nn.Module]:
        """Build patch embedding and encoder; arguments are those of timm's networks that have no blocks yet."""
        vit = VisionTransformer(**arguments, depth=0, reg_tokens=num_registers)
        dim = vit.embed_dim
        vit.blocks.extend(Block(dim, num_heads, qkv_bias=True, drop_path=rate) for rate in drop_path_rates)
        vit.blocks.apply(vit._init_weights)
        return vit.patch_embed, ViTEncoder(vit, activation_checkpointing)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem with the embeddings, each block, the norm."""
        blocks = [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm\.", (self.depth,))]
        return {"stem": r"^stem\.|^encoder\.(?:cls_token|reg_token|position)", "blocks": blocks}

    def encode(self, image: Tensor) -> list[Tensor]:
        """One feature map of the patch tokens, (batch, embed_dim, *grid)."""
        self.check_input(image)
        return [self.encoder(self.stem(image))]

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Under deep supervision a list, each output at the resolution that ``strides`` states.

        Raises:
            ValueError: on an image of another size.
        """
        self.check_input(image)
        return self.decoder(self.encoder(self.stem(image)))


def timm_overrides(vit: VisionTransformer, name: str) -> dict[str, Any]:
    """Derive the arguments of the ``SETRPUP`` with timm's ViT as encoder.

    Its stride is the power of two that is nearest to the ViT's: 16 for DINOv2's 14.

    Raises:
        ValueError: if the ViT has no class token, or no learned position embeddings of its patches.
    """
    registers = 0 if vit.reg_token is None else vit.reg_token.shape[1]
    if vit.num_prefix_tokens != 1 + registers or vit.cls_token is None or vit.pos_embed is None:
        raise ValueError(
            f"timm's {name} is no ViT with one class token and learned position embeddings, such as "
            "vit_base_patch16_224, so it cannot become a setr_pup"
        )
    return {
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.get_submodule("blocks.0.attn").num_heads,
        "num_registers": registers,
        **stride_arguments(vit.patch_embed.patch_size),
    }


def stride_arguments(patch_size: Sequence[int]) -> dict[str, Any]:
    """Stride and decoder for the weights of a ViT whose patches have this size."""
    stride = [2 ** round(log2(size)) for size in patch_size]
    levels = round(log2(max(stride)))
    return {"patch_embed_stride": stride, "decoder_dims": [512 >> level for level in range(levels)]}


def timm_filter_fn(state_dict: Mapping[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Translate the weights of timm's ViT to those of ``SETRPUP``'s stem and encoder.

    LayerScale (DINOv2, DeiT III) becomes a part of the layer that it scales, whose output stays the same.

    Args:
        state_dict: by timm's names, without a classifier.
        vit: timm's network; its image size fixes the grid of the position embeddings.

    Raises:
        ValueError: if the position embeddings are of another number of patches.
    """
    state_dict = dict(state_dict)
    for name in [name for name in state_dict if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        scale = state_dict.pop(name)
        layer = name.replace("ls1.gamma", "attn.proj").replace("ls2.gamma", "mlp.fc2")
        state_dict[f"{layer}.weight"] = state_dict[f"{layer}.weight"] * scale[:, None]
        state_dict[f"{layer}.bias"] = state_dict[f"{layer}.bias"] * scale
    position, cls_token = state_dict.pop("pos_embed"), state_dict.pop("cls_token")
    prefix = position.shape[1] - vit.patch_embed.num_patches
    if prefix not in (0, 1, vit.num_prefix_tokens):
        size = "x".join(map(str, vit.patch_embed.img_size))
        raise ValueError(
            f"the weights have position embeddings of {position.shape[1]} tokens, images of {size} have "
            f"{vit.patch_embed.num_patches} patches; state the image size of their training"
        )
    if prefix:
        position, tokens = position[:, prefix:], position[:, :prefix]
        cls_token = cls_token + tokens[:, :1]
        if prefix > 1:
            state_dict["reg_token"] = state_dict["reg_token"] + tokens[:, 1:]
    return {
        **stem_and_encoder(state_dict, stride_arguments(vit.patch_embed.patch_size)["patch_embed_stride"]),
        "encoder.cls_token": cls_token,
        "encoder.position.weight": position.unflatten(1, vit.patch_embed.grid_size),
    }


def stem_and_encoder(state_dict: Mapping[str, Tensor], stride: Sequence[int]) -> dict[str, Tensor]:
    """Rename a ViT's weights, and resample its patch embedding to another stride so that tokens keep their values.

    Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023, section 3.4.
    """
    stem = "patch_embed."
    names = {k: f"stem.{k.removeprefix(stem)}" if k.startswith(stem) else f"encoder.{k}" for k in state_dict}
    renamed = {names[k]: v for k, v in state_dict.items()}
    kernel = renamed["stem.proj.weight"]
    if tuple(kernel.shape[2:]) != tuple(stride):
        renamed["stem.proj.weight"] = resample_patch_embed(kernel, list(stride))
    return renamed


register_network("setr_pup", SETRPUP)
register_network("setr_pup_small", SETRPUP, embed_dim=384, num_heads=6)
register_network("setr_pup_tiny", SETRPUP, embed_dim=192, num_heads=3)
register_timm_family(VisionTransformer, "setr_pup", "vit_base_patch16_224", timm_overrides, timm_filter_fn)
