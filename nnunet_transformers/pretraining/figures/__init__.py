"""Figures of what pretraining found."""
