"""Layers that the networks share, one idea a file."""

from .conv_norm_act import ConvNormAct
from .patch_embed import PatchEmbed
from .patch_expand import PatchExpand, tokens_to_image
from .patch_merging import PatchMerging
from .position_embedding import PositionEmbedding, fit_position_embeddings, resize_position_embedding
from .relative_position_bias import RelativePositionBias
from .spatial_reduction_attention import SpatialReductionAttention
from .window_attention import WindowAttention
from .window_partition import WindowPartition

__all__ = [
    "ConvNormAct",
    "PatchEmbed",
    "PatchExpand",
    "PatchMerging",
    "PositionEmbedding",
    "RelativePositionBias",
    "SpatialReductionAttention",
    "WindowAttention",
    "WindowPartition",
    "fit_position_embeddings",
    "resize_position_embedding",
    "tokens_to_image",
]
