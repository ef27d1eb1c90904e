"""SETR-PUP in 2D: timm's ViT and a decoder that alternates convolution and up-sampling.

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR 2021,
as MGCA segments with it (Wang et al., "Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
Representation Learning", NeurIPS 2022, supplement B.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct as ConvBatchNormReLU  # timm's defaults
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ._arguments import PerAxis, check_depth, check_strides, per_axis, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network, register_timm_family
from .layers import PositionEmbedding, recomputed


class ViTEncoder(nn.Module):
    """Class token, position embeddings, blocks and norm of timm's ViT.

    The class token's position embedding is part of the class token: only their sum matters.

    Args:
        vit: provides class token, blocks and norm.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, vit: VisionTransformer, activation_checkpointing: bool) -> None:
        super().__init__()
        assert vit.cls_token is not None
        self.cls_token = vit.cls_token
        self.position = PositionEmbedding(vit.patch_embed.grid_size, vit.embed_dim)
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.activation_checkpointing = activation_checkpointing

    def no_weight_decay(self) -> set[str]:
        """The class token; ``PositionEmbedding`` states the positions."""
        return {"cls_token"}

    def forward(self, tokens: Tensor) -> Tensor:
        """Map patch tokens (batch, length, dim) to a feature map (batch, dim, *grid)."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), self.position(tokens)], dim=1)
        for block in self.blocks:
            x = recomputed(block, x, active=self.activation_checkpointing and self.training)
        return self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, self.position.grid_size)


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
        height, width = self.patch_size
        vit = VisionTransformer(
            img_size=(height, width),
            patch_size=(stride[0], stride[1]),
            in_chans=input_channels,
            num_classes=0,
            embed_dim=embed_dim,
            depth=0,
        )
        # not in timm's constructor, which reads the rates from a tensor: a planner's fake tensors have no data
        rates = np.linspace(0, drop_path_rate, depth).tolist()
        vit.blocks.extend(Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate) for rate in rates)
        vit.blocks.apply(vit._init_weights)
        self.depth = depth
        self.stem = vit.patch_embed
        self.encoder = ViTEncoder(vit, activation_checkpointing)
        if auxiliary_heads is None:
            auxiliary_heads = deep_supervision
        self.decoder = SETRPUPDecoder(
            embed_dim, decoder_dims, steps[::-1], num_classes, auxiliary_heads, deep_supervision
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem with the embeddings, each block, the norm."""
        blocks = [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm\.", (self.depth,))]
        return {"stem": r"^stem\.|^encoder\.(?:cls_token|position)", "blocks": blocks}

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

    Raises:
        ValueError: if the ViT has register tokens, no class token, or no learned position embedding for some token.
    """
    if vit.num_prefix_tokens != 1 or vit.pos_embed is None or vit.pos_embed.shape[1] != vit.patch_embed.num_patches + 1:
        raise ValueError(
            f"timm's {name} is no ViT with one class token and a learned position embedding for it and each patch, "
            "such as vit_base_patch16_224, so it cannot become a setr_pup"
        )
    return {
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.get_submodule("blocks.0.attn").num_heads,
        "patch_embed_stride": list(vit.patch_embed.patch_size),
    }


def timm_filter_fn(state_dict: Mapping[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Translate the weights of timm's ViT to those of ``SETRPUP``'s stem and encoder.

    Args:
        state_dict: by timm's names, without a classifier.
        vit: timm's network; its image size fixes the grid of the position embeddings.
    """
    state_dict = dict(state_dict)
    position = state_dict.pop("pos_embed")
    cls_token = state_dict.pop("cls_token") + position[:, :1]
    stem = "patch_embed."
    return {
        **{f"stem.{k.removeprefix(stem)}" if k.startswith(stem) else f"encoder.{k}": v for k, v in state_dict.items()},
        "encoder.cls_token": cls_token,
        "encoder.position.weight": position[:, 1:].unflatten(1, vit.patch_embed.grid_size),
    }


register_network("setr_pup", SETRPUP)
register_network("setr_pup_small", SETRPUP, embed_dim=384, num_heads=6)
register_network("setr_pup_tiny", SETRPUP, embed_dim=192, num_heads=3)
register_timm_family(VisionTransformer, "setr_pup", "vit_base_patch16_224", timm_overrides, timm_filter_fn)
