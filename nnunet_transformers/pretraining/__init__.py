"""Encoder checkpoints from images without labels: prepared data, methods on Lightning, recipes.

``nnunet-transformers pretrain prepare`` and ``nnunet-transformers pretrain fit`` are the way in. The losses are plain
functions:

>>> from nnunet_transformers.pretraining import cpa_loss, cta_loss, ita_loss, sinkhorn
"""

from .losses import (
    CASA,
    CentredCrossEntropy,
    cosine_loss,
    cpa_loss,
    cta_loss,
    info_nce_loss,
    ita_loss,
    masked_reconstruction_loss,
    sinkhorn,
    token_weights,
)

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
]
