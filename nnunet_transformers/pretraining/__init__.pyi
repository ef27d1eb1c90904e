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
