"""Layers that the networks share, one idea a file."""

from .patch_embed import PatchEmbed
from .patch_expand import PatchExpand, tokens_to_image
from .patch_merging import PatchMerging
from .relative_position_bias import RelativePositionBias
from .window_attention import WindowAttention
from .window_partition import WindowPartition

__all__ = [
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "RelativePositionBias",
    "WindowAttention",
    "WindowPartition",
    "tokens_to_image",
]
