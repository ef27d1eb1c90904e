"""Figures of matches and of attention."""
