"""Checks of contracts, for networks and pretraining methods of other packages too.

``check_method`` and ``check_pretraining_method`` need the extra ``[pretraining]`` and are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .network import NETWORK_CHECKS, PATCHES, check_network

if TYPE_CHECKING:
    from .method import check_method
    from .recipe import check_pretraining_method

__all__ = ["NETWORK_CHECKS", "PATCHES", "check_method", "check_network", "check_pretraining_method"]


def __getattr__(name: str) -> Any:
    if name == "check_method":
        from .method import check_method

        return check_method
    if name == "check_pretraining_method":
        from .recipe import check_pretraining_method

        return check_pretraining_method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
