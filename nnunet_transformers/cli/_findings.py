"""Results of the doctor's checks."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """Result of a check.

    Attributes:
        state: ``OK``, ``WARNING`` or ``PROBLEM``.
        text: what was found.
        remedy: what to do about it, if anything.
    """

    state: str
    text: str
    remedy: str = ""
