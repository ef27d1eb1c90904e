"""SETR-PUP with DINOv3's ViT: rotary position embeddings, register tokens and LayerScale.

Simeoni et al., "DINOv3", arXiv:2508.10104, section 3.2: axial rotary embeddings of coordinates in [-1, 1], four
register tokens. The decoder is SETR-PUP's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import pi
from typing import Any

import torch
from timm.layers import LayerNorm, RotaryEmbeddingDinoV3
from timm.models import Eva
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from ._registry import register_network, register_timm_family
from .layers import recomputed
from .setr_pup import SETRPUP, feature_map, stem_and_encoder, stride_arguments, with_prefix

# as in timm's vit_base_patch16_dinov3
LONGEST_PERIOD = 100.0
LAYER_SCALE = 1e-5
NORM = partial(LayerNorm, eps=1e-5)


def rotary_embedding(grid_size: Sequence[int], head_dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of DINOv3's axial angles, (positions, 2 * head_dim), float32, for timm's ``EvaAttention``.

    Computed in each forward pass, which costs little; a buffer would have to follow device and data type.
    """
    axes = [(torch.arange(n, device=device) + 0.5) * (2 / n) - 1 for n in grid_size]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    exponents = torch.arange(head_dim // 4, device=device) * (4 / head_dim)
    angles = (2 * pi * coordinates[..., None] / LONGEST_PERIOD**exponents).flatten(1).tile(2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class RotaryViTEncoder(nn.Module):
    """Class token, register tokens, rotary position embeddings, blocks and norm of timm's ``Eva``.

    Args:
        vit: provides all but the embeddings.
        num_heads: attention heads.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, vit: Eva, num_heads: int, activation_checkpointing: bool) -> None:
        super().__init__()
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.blocks = vit.blocks
        self.norm = vit.norm
        self.grid_size = tuple(vit.patch_embed.grid_size)
        self.head_dim = vit.embed_dim // num_heads
        self.activation_checkpointing = activation_checkpointing

    def no_weight_decay(self) -> set[str]:
        """The class and register tokens."""
        return {"cls_token", "reg_token"}

    def forward(self, tokens: Tensor) -> Tensor:
        """Map patch tokens (batch, length, dim) to a feature map (batch, dim, *grid)."""
        x = with_prefix(tokens, self.cls_token, self.reg_token)
        rope = rotary_embedding(self.grid_size, self.head_dim, tokens.device)
        for block in self.blocks:
            x = recomputed(block, x, rope, active=self.activation_checkpointing and self.training)
        return feature_map(self.norm(x), self.grid_size)


class SETRPUPDINOv3(SETRPUP):
    """SETR-PUP in 2D whose encoder is DINOv3's ViT; arguments as for ``SETRPUP``.

    Examples:
        >>> import torch
        >>> network = SETRPUPDINOv3(1, 3, patch_size=(64, 64), embed_dim=192, num_heads=3, num_registers=4)
        >>> network(torch.zeros(1, 1, 64, 64)).shape
        torch.Size([1, 3, 64, 64])
    """

    def _build_vit(
        self,
        arguments: dict[str, Any],
        num_heads: int,
        num_registers: int,
        drop_path_rates: Sequence[float],
        activation_checkpointing: bool,
    ) -> tuple[nn.Module, nn.Module]:
        if arguments["embed_dim"] % (4 * num_heads):
            raise ValueError(
                f"embed_dim must be a multiple of 4 * num_heads, for rotary embeddings of two axes, got "
                f"{arguments['embed_dim']} and {num_heads} heads"
            )
        vit = Eva(
            **arguments,
            depth=0,
            num_heads=num_heads,
            num_reg_tokens=num_registers,
            use_abs_pos_emb=False,
            use_fc_norm=False,
            norm_layer=NORM,
        )
        vit.blocks.extend(
            EvaBlock(
                vit.embed_dim,
                num_heads,
                qkv_bias=False,
                rotate_half=True,
                num_prefix_tokens=vit.num_prefix_tokens,
                drop_path=rate,
                init_values=LAYER_SCALE,
                norm_layer=NORM,
            )
            for rate in drop_path_rates
        )
        vit.init_weights()
        return vit.patch_embed, RotaryViTEncoder(vit, num_heads, activation_checkpointing)


def timm_overrides(vit: Eva, name: str) -> dict[str, Any]:
    """Derive the arguments of the ``SETRPUPDINOv3`` with timm's ViT as encoder.

    Raises:
        ValueError: if it is another kind of ViT than DINOv3's, such as EVA-02.
    """
    if not isinstance(vit.rope, RotaryEmbeddingDinoV3) or vit.pos_embed is not None or vit.cls_token is None:
        raise ValueError(
            f"timm's {name} is no ViT of DINOv3, such as vit_base_patch16_dinov3, so it cannot become a setr_pup_dinov3"
        )
    return {
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": vit.get_submodule("blocks.0.attn").num_heads,
        "num_registers": vit.num_prefix_tokens - 1,
        **stride_arguments(vit.patch_embed.patch_size),
    }


def timm_filter_fn(state_dict: Mapping[str, Tensor], vit: Eva) -> dict[str, Tensor]:
    """Translate the weights of timm's ViT to those of ``SETRPUPDINOv3``'s stem and encoder.

    The attention's biases, which timm's ``qkvb`` networks have, are left out where they are zero, as in DINOv3's.
    """
    biases = (".q_bias", ".v_bias")
    state_dict = {name: v for name, v in state_dict.items() if not (name.endswith(biases) and not v.any())}
    return stem_and_encoder(state_dict, stride_arguments(vit.patch_embed.patch_size)["patch_embed_stride"])


register_network("setr_pup_dinov3", SETRPUPDINOv3, num_registers=4)
register_network("setr_pup_dinov3_small", SETRPUPDINOv3, num_registers=4, embed_dim=384, num_heads=6)
register_timm_family(Eva, "setr_pup_dinov3", "vit_base_patch16_dinov3", timm_overrides, timm_filter_fn)
