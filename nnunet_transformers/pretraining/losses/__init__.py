"""Losses of the pretraining methods that no library has as the papers state them."""

from .cross_modal import cpa_loss, cta_loss, ita_loss, sinkhorn, token_weights, word_attention
from .semantic_alignment import CASA, CentredCrossEntropy, cosine_loss, info_nce_loss, masked_reconstruction_loss

__all__ = [
    "CASA",
    "CentredCrossEntropy",
    "cosine_loss",
    "cpa_loss",
    "cta_loss",
    "info_nce_loss",
    "ita_loss",
    "masked_reconstruction_loss",
    "sinkhorn",
    "token_weights",
    "word_attention",
]
