"""Losses of the pretraining methods that no library has in the papers' form."""

from .cross_dimension import CrossDimensionLoss
from .cross_modal import cpa_loss, cta_loss, ita_loss, sinkhorn, token_weights, word_attention
from .masked_reconstruction import masked_reconstruction_loss
from .point_contrast import point_contrast
from .semantic_alignment import (
    CASA,
    SIMILARITIES,
    CentredCrossEntropy,
    cosine_loss,
    info_nce_loss,
)

__all__ = [
    "CASA",
    "SIMILARITIES",
    "CentredCrossEntropy",
    "CrossDimensionLoss",
    "cosine_loss",
    "cpa_loss",
    "cta_loss",
    "info_nce_loss",
    "ita_loss",
    "masked_reconstruction_loss",
    "point_contrast",
    "sinkhorn",
    "token_weights",
    "word_attention",
]
