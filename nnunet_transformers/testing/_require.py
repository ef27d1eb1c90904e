"""The one statement of the checks."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise AssertionError unless a condition holds, also under python -O, which removes assert statements."""
    if not condition:
        raise AssertionError(message)
