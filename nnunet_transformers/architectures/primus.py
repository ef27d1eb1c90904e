"""Primus V2 and V3, nnU-Net's ViTs for volumes, from the parts in dynamic-network-architectures.

Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", https://arxiv.org/abs/2503.01835: a
convolutional embedding of 8^3 voxels, blocks of EVA-02 with rotary and learned positions, three transposed
convolutions. V3 is the network of nnU-Net's trainers ``nnUNet_PrimusV3S_Trainer`` and so on. There is one output, so no
deep supervision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.eva import Eva
from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchDecode, PatchEmbedDeeperControlled
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from timm.layers import build_rotary_pos_embed
from torch import Tensor, nn

from ._arguments import check_depth, check_strides, token_grids
from ._network import SegmentationNetwork
from ._registry import register_network
from .layers import PositionEmbedding, recomputed

# voxels per token, which the three strides of 2 in the embedding fix
TOKEN = (8, 8, 8)
POSITION = "encoder.position.weight"
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}
# LayerScale and slope of the initialisation, as nnU-Net's trainers have them
LAYER_SCALE, SLOPE = 0.1, 1e-2


def rotary_embedding(grid_size: Sequence[int], dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of a token's index on each axis, (tokens, 3 * dim), float32, for timm's ``EvaAttention``.

    Computed in each forward pass, which costs little. The buffer of newer timm's ``RotaryEmbeddingCat`` has the size
    for two axes, so that dynamic-network-architectures' own Primus, which requires timm < 1.0.23, fails with them.
    """
    size = list(grid_size)
    waves = build_rotary_pos_embed(size, dim=dim, in_pixels=False, ref_feat_shape=size, device=device)
    return torch.cat(waves, -1)


class PrimusEncoder(nn.Module):
    """Learned positions, blocks and norm of dynamic-network-architectures' ``Eva``.

    Args:
        eva: provides blocks and norm.
        grid_size: tokens per axis.
        rotary_dim: two thirds of a head's channels.
        activation_checkpointing: recompute the blocks in the backward pass.
    """

    def __init__(self, eva: Eva, grid_size: Sequence[int], rotary_dim: int, activation_checkpointing: bool) -> None:
        super().__init__()
        self.position = PositionEmbedding(grid_size, eva.embed_dim)
        self.blocks = eva.blocks
        self.norm = eva.norm
        self.rotary_dim = rotary_dim
        self.activation_checkpointing = activation_checkpointing

    def forward(self, embedded: Tensor) -> Tensor:
        """Map the stem's output (batch, dim, *grid) to a feature map of the same shape."""
        x = self.position(embedded.flatten(2).transpose(1, 2))
        rope = rotary_embedding(self.position.grid_size, self.rotary_dim, x.device)
        for block in self.blocks:
            x = recomputed(block, x, rope, active=self.activation_checkpointing and self.training)
        return self.norm(x).transpose(1, 2).unflatten(2, self.position.grid_size)


class PrimusDecoder(nn.Module):
    """Transposed convolutions of stride 2 with layer norm and GELU; the last one returns the logits."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        *levels, head = PatchDecode(TOKEN, embed_dim, num_classes).decode
        self.levels, self.seg_layers = nn.ModuleList(levels), nn.ModuleList([head])
        self.deep_supervision = False

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, dim, *grid) to logits."""
        for level in self.levels:
            features = level(features)
        return self.seg_layers[0](features)


class Primus(SegmentationNetwork):
    """Primus V3, and V2 with other arguments, in 3D.

    Args:
        input_channels: image channels.
        num_classes: output channels.
        patch_size: voxels per axis, multiples of 8. The learned position embeddings depend on it.
        embed_dim, depth, num_heads: channels, blocks and attention heads; the defaults are those of size S.
        widths: channels of the embedding at full, half, quarter and eighth resolution.
        token_skips: add linear projections of the embedding's finer maps to the tokens, as V3 does.
        activation: of the embedding, ``leaky_relu`` as in V3 or ``relu`` as in V2.
        drop_path_rate: stochastic depth rate of the last block.
        activation_checkpointing: recompute the blocks in the backward pass: less memory, more time.
        deep_supervision, auxiliary_heads: without effect, there is one output.
        strides: the plan's copy of the strides for nnU-Net; must match the network's.

    Raises:
        ValueError: on a patch size that is not 3D or not divisible by 8, and on arguments that contradict each other.

    Examples:
        >>> import torch
        >>> network = Primus(input_channels=1, num_classes=3, patch_size=(16, 16, 16), depth=1, widths=(8, 8, 8, 8))
        >>> network(torch.zeros(1, 1, 16, 16, 16)).shape
        torch.Size([1, 3, 16, 16, 16])
    """

    dimensions = (3,)
    deeply_supervised = False
    stem_channels_last = False
    # the embedding registers its layers under two names
    keys_to_in_proj = ("stem.stem.blocks.0.conv1.conv", "stem.stem.blocks.0.conv1.all_modules.0")
    removable: Mapping[str, str] = MappingProxyType(
        {"attention": r"(encoder\.blocks\.\d+\.attn)", "blocks": r"(encoder\.blocks\.\d+)"}
    )
    has_skips = False

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        embed_dim: int = 396,
        depth: int = 12,
        num_heads: int = 6,
        widths: Sequence[int] = (32, 64, 256, 1024),
        token_skips: bool = True,
        activation: str = "leaky_relu",
        drop_path_rate: float = 0.2,
        activation_checkpointing: bool = False,
        deep_supervision: bool = False,
        auxiliary_heads: bool = False,
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__(patch_size)
        self.strides = [[1, 1, 1], list(TOKEN)]
        check_strides(strides, self.strides)
        if embed_dim % (6 * num_heads):
            raise ValueError(
                f"embed_dim must be a multiple of 6 * num_heads, for rotary embeddings of three axes, got {embed_dim} "
                f"and {num_heads} heads"
            )
        if len(widths) != 4 or activation not in ACTIVATIONS:
            raise ValueError(
                f"widths must have 4 entries and activation be one of {', '.join(ACTIVATIONS)}, got {tuple(widths)} "
                f"and {activation!r}"
            )
        check_depth((depth,), "depth")
        self.grid_sizes, self.feature_channels = token_grids(self.patch_size, [TOKEN]), [embed_dim]
        self.depth = depth
        self.stem = PatchEmbedDeeperControlled(
            input_channels,
            embed_dim,
            ch_per_level=tuple(widths),
            add_skips=token_skips,
            nonlin=ACTIVATIONS[activation],
        )
        self.stem.apply(InitWeights_He(SLOPE))
        eva = Eva(
            embed_dim,
            depth,
            num_heads,
            scale_attn_inner=True,
            drop_path_rate=drop_path_rate,
            init_values=LAYER_SCALE,
            use_abs_pos_emb=False,
            use_rot_pos_emb=False,
            ref_feat_shape=tuple(self.grid_sizes[0]),
        )
        self.encoder = PrimusEncoder(eva, self.grid_sizes[0], embed_dim // num_heads * 2 // 3, activation_checkpointing)
        self.decoder = PrimusDecoder(embed_dim, num_classes)
        self.decoder.apply(InitWeights_He(SLOPE))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's layer-wise learning rates: the stem with the positions, each block, the norm."""
        blocks = [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm\.", (self.depth,))]
        return {"stem": r"^stem\.|^encoder\.position", "blocks": blocks}

    def encode(self, image: Tensor) -> list[Tensor]:
        """One feature map of the tokens, (batch, embed_dim, *grid)."""
        self.check_input(image)
        return [self.encoder(self.stem(image))]

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, input_channels, *patch_size) to logits (batch, num_classes, *patch_size).

        Raises:
            ValueError: on an image of another size.
        """
        return self.decoder(self.encode(image)[0])


STOCK_NAMES = (
    (r"^down_projection\.", "stem."),
    (r"^eva\.pos_embed$", POSITION),
    (r"^eva\.", "encoder."),
    (r"^up_projection\.decode\.2\.", "decoder.seg_layers.0."),
    (r"^up_projection\.decode\.", "decoder.levels."),
)


def from_stock(state_dict: Mapping[str, Tensor], grid_size: Sequence[int]) -> dict[str, Tensor]:
    """Translate the weights of dynamic-network-architectures' Primus V2 or V3, or of its encoder, to ``Primus``.

    Args:
        state_dict: by its names; others are kept, but for the token of masked training.
        grid_size: tokens per axis of the position embeddings, whose shape does not show them.
    """
    renamed = {}
    for name, value in state_dict.items():
        if name == "mask_token":
            continue
        for pattern, replacement in STOCK_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.unflatten(1, tuple(grid_size)) if name == POSITION and value.dim() == 3 else value
    return renamed


SIZES: dict[str, dict[str, Any]] = {
    "s": {},
    "m": {"embed_dim": 864, "depth": 16, "num_heads": 12},
    "l": {"embed_dim": 1056, "depth": 24, "num_heads": 16},
}
V2: dict[str, Any] = {"widths": (32, 32, 64, 128), "token_skips": False, "activation": "relu"}
for size, own in SIZES.items():
    register_network(f"primus_v3_{size}", Primus, **own)
    register_network(f"primus_v2_{size}", Primus, **own, **V2)
