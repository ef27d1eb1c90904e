"""Samples from prepared images, a file for each kind of them."""

from .epoch import Epoch, EpochData
from .masked import MaskedViewData, MaskedViews
from .matched import MatchedViewData, MatchedViews
from .places import PlacedViewData, PlacedViews
from .prepared import PreparedImages, read_index
from .two_views import TwoViews, ViewData

__all__ = [
    "Epoch",
    "EpochData",
    "MaskedViewData",
    "MaskedViews",
    "MatchedViewData",
    "MatchedViews",
    "PlacedViewData",
    "PlacedViews",
    "PreparedImages",
    "TwoViews",
    "ViewData",
    "read_index",
]
