"""Checks of contracts, for networks and pretraining methods of other packages too.

``check_method`` needs the extra ``[pretraining]`` and is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .network import NETWORK_CHECKS, PATCHES, check_network

if TYPE_CHECKING:
    from .method import check_method

__all__ = ["NETWORK_CHECKS", "PATCHES", "check_method", "check_network"]


def __getattr__(name: str) -> Any:
    if name == "check_method":
        from .method import check_method

        return check_method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
