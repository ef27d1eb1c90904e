"""Samples from prepared images, a file for each kind of them."""

from .epoch import Epoch, EpochData, ShuffledEpoch
from .masked import MaskedViewData, MaskedViews
from .matched import MatchedViewData, MatchedViews
from .overlapping import PlacedViewData, PlacedViews
from .prepared_images import PreparedImages, read_index, tile_starts
from .report_pairs import ReportData
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
    "ReportData",
    "ShuffledEpoch",
    "TwoViews",
    "ViewData",
    "read_index",
    "tile_starts",
]
