"""HTML pages, each in one self-contained file: of a trained fold, of a run's curves, and of compared models."""

from .comparison_page import write_comparison
from .page import write_report
from .run_page import is_run, write_run_report

__all__ = ["is_run", "write_comparison", "write_report", "write_run_report"]
