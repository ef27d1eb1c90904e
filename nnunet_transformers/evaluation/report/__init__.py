"""HTML report of a trained fold, in one self-contained file."""

from .page import write_report

__all__ = ["write_report"]
