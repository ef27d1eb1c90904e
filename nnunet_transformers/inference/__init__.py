"""Prediction as nnU-Net does it, with several patches in a pass."""

from .command import predict
from .predictor import BatchedPredictor

__all__ = ["BatchedPredictor", "predict"]
