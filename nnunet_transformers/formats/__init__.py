"""Image formats that nnU-Net has no reader for, as sources of cases in the format of a model's dataset.

Prediction sees ordinary files; a source writes them, and turns their segmentations into its own format.
"""

from .source import Source

__all__ = ["Source"]
