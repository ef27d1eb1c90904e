"""Layers that the networks share, one idea a file."""

from .channels_last import convolution
from .checkpointing import apply_in_chunks, recomputed
from .conv_norm_act import ConvNormAct
from .full_resolution_branch import FullResolutionBranch
from .patch_embed import PatchEmbed
from .patch_expand import PatchExpand, tokens_to_image
from .patch_merging import PatchMerging
from .patch_transpose import patch_transpose
from .position_embedding import PositionEmbedding, fit_position_embeddings, resize_position_embedding
from .relative_position_bias import RelativePositionBias, resize_bias_table
from .spatial_reduction_attention import SpatialReductionAttention
from .window_attention import WindowAttention, set_flex_attention
from .window_choice import choose_windows
from .window_partition import WindowPartition

__all__ = [
    "ConvNormAct",
    "FullResolutionBranch",
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "PositionEmbedding",
    "RelativePositionBias",
    "SpatialReductionAttention",
    "WindowAttention",
    "WindowPartition",
    "apply_in_chunks",
    "choose_windows",
    "convolution",
    "fit_position_embeddings",
    "patch_transpose",
    "recomputed",
    "resize_bias_table",
    "resize_position_embedding",
    "set_flex_attention",
    "tokens_to_image",
]
