"""Layers that the networks share, one idea a file."""

from .channels_last import convolution, patch_transpose
from .patch_embed import PatchEmbed
from .patch_expand import PatchExpand, tokens_to_image
from .patch_merging import PatchMerging
from .relative_position_bias import RelativePositionBias, resize_bias_table
from .window_attention import WindowAttention
from .window_choice import tiling_windows
from .window_partition import WindowPartition

__all__ = [
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "RelativePositionBias",
    "WindowAttention",
    "WindowPartition",
    "convolution",
    "patch_transpose",
    "resize_bias_table",
    "tiling_windows",
    "tokens_to_image",
]
