"""Figures of pretraining's matches and attention."""
