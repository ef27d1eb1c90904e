"""A trained fold as one self-contained HTML file."""

from .report import write_report

__all__ = ["write_report"]
