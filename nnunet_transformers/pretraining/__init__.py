"""Self-supervised pretraining of encoders: prepared data, methods on Lightning, losses, recipes.

``nnunet-transformers pretrain prepare`` prepares images and ``nnunet-transformers pretrain fit`` runs a recipe. A
method of one's own derives from ``EncoderPretraining``; the losses are plain functions and modules:

>>> from nnunet_transformers.pretraining import EncoderPretraining, cpa_loss, cta_loss, ita_loss, sinkhorn
"""

from .encoder_pretraining import EncoderPretraining
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
    "EncoderPretraining",
    "cosine_loss",
    "cpa_loss",
    "cta_loss",
    "info_nce_loss",
    "ita_loss",
    "masked_reconstruction_loss",
    "sinkhorn",
    "token_weights",
]
