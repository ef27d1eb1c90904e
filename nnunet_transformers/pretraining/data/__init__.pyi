from .cached_matcher import CachedMatcher
from .epoch import EpochData
from .epoch_samples import Epoch, ShuffledEpoch
from .fused_crops import FusedCropData, FusedCrops
from .index import PreparedCase, PreparedIndex, Skipped, read_index
from .masked_crops import MaskedCropData, MaskedCrops
from .masked_views import MaskedViewData, MaskedViews
from .matched_views import MatchedViewData, MatchedViews
from .overlapping_views import OverlappingViewData, OverlappingViews
from .prepared_images import PreparedImages, tile_starts
from .report_pairs import ReportPairData, ReportPairs
from .two_views import TwoViewData, TwoViews

__all__ = [
    "CachedMatcher",
    "Epoch",
    "EpochData",
    "FusedCropData",
    "FusedCrops",
    "MaskedCropData",
    "MaskedCrops",
    "MaskedViewData",
    "MaskedViews",
    "MatchedViewData",
    "MatchedViews",
    "OverlappingViewData",
    "OverlappingViews",
    "PreparedCase",
    "PreparedImages",
    "PreparedIndex",
    "ReportPairData",
    "ReportPairs",
    "ShuffledEpoch",
    "Skipped",
    "TwoViewData",
    "TwoViews",
    "read_index",
    "tile_starts",
]
