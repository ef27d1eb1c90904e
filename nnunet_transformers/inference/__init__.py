"""nnU-Net's sliding-window prediction with batches of patches."""

from .command import predict
from .predictor import BatchedPredictor

__all__ = ["BatchedPredictor", "predict"]
